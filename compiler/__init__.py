"""intformer: transformer encoders as integer-only shared libraries. See README.md."""

__version__ = "0.1.0"
