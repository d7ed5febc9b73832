"""The authors' checkpoints into model folders, and back."""
