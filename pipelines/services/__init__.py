"""Local servers for the demo and the tests: S3 and MLflow, on loopback."""
