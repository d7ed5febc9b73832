"""Batch inference: images in, Parquet out."""
