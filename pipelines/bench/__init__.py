"""Measurements of the op and of the model. Imports no Ray."""
