"""Cost of the model: against the published table, by operator, by image size."""
