"""The three parts of `make accuracy`."""
