"""One picture of what a model sees in an image, and why."""
