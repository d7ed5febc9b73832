"""Measurements that need neither Ray nor MLflow, so that they also run on a bare GPU machine."""
