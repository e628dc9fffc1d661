"""Quantization-aware training; needs torch and transformers."""
