"""The pipelines around the detector: one file a verb."""
