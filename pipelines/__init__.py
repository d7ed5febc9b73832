"""The pipelines around the detector: a folder for each command."""
