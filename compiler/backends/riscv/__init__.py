"""64-bit RISC-V CPUs: RV64GC, with and without vectors."""
