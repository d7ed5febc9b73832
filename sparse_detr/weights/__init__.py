"""Weights in files: model folders, backbones, the authors' checkpoints."""
