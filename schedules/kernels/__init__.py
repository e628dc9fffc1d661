"""Kernels written by hand: of ops whose loops no tensor expression can state (see table.py)."""
