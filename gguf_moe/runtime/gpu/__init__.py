"""Steps on a GPU that may be smaller than the model. Experts that are not there run on the CPU."""
