"""A model of a GPU: what kernels would take on one that is not here."""
