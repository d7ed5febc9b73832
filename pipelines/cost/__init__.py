"""Parameters, multiply-adds and latency of a recipe or a model folder."""
