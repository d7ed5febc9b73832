"""The authors' checkpoints: their keys, flags and files."""
