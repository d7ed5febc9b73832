"""Set matching and the losses on top of it."""
