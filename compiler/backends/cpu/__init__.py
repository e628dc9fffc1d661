"""What every CPU shares: kernels become object files."""
