"""Training as a job of Ray Train."""
