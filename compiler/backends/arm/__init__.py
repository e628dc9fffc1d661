"""64-bit ARM CPUs: NEON, with and without the dot product instruction."""
