"""Commands sent to a running cluster as Ray Jobs."""
