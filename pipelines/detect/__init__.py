"""Detection over a collection of images with Ray Data, shared by predict and evaluate."""
