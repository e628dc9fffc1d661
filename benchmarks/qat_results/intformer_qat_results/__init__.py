"""The cells and the table of `make qat-results`."""
