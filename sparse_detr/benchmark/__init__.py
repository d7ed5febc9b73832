"""What models cost: counted by a formula, measured, and compared with the paper. Needs no Ray."""
