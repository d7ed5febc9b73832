"""Examination of an installation: packages, op, Ray, MLflow, stores."""
