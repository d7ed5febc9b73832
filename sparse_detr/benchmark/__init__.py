"""What models and the op cost: counted, measured, compared with the paper and with others. Needs no Ray."""
