"""x86-64: its features and its machine code."""
