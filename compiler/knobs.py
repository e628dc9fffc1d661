"""Every environment flag, in one place. README.md has the same table."""

import os

from intformer.errors import IntformerError


def debug() -> int:
    """INTFORMER_DEBUG: 0 one-line errors; 1 tracebacks."""
    return _number("INTFORMER_DEBUG", 0)


def threads() -> int:
    """INTFORMER_THREADS: threads of a loaded library; 0 takes what the CPU quota allows."""
    return _number("INTFORMER_THREADS", 0)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise IntformerError(
            f"{name}={text!r} is not a whole number", where="environment", hint=f"unset {name}"
        )
    return int(text)
