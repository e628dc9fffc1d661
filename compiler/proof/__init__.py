"""The proof of a compiled library: see verify.py. Empty, so that its parts import each other."""
