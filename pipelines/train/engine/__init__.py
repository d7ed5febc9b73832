"""The training loop and its parts. Imports no Ray."""
