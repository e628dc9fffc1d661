"""Passes: an IntModel becomes a plan of scheduled integer kernels."""
