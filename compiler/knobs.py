"""Every environment flag, in one place. docs/usage.md lists those for users."""

import os
import threading
from contextlib import contextmanager
from pathlib import Path

from intformer.errors import IntformerError

_one_thread = threading.Lock()


def debug() -> int:
    """INTFORMER_DEBUG: 0 one-line errors; 1 tracebacks."""
    return _number("INTFORMER_DEBUG", 0)


def threads() -> int:
    """INTFORMER_THREADS: threads of a loaded library; 0 takes what the CPU quota allows."""
    return _number("INTFORMER_THREADS", 0)


# INTFORMER_VARIANT: which variant of its kernels a library runs. The library reads it itself
# (compiler/link/c/runtime.c), so that it works without Python.


def api_key() -> str | None:
    """INTFORMER_API_KEY: what requests to `intformer serve` must bring."""
    return os.environ.get("INTFORMER_API_KEY") or None


def cache() -> Path | None:
    """INTFORMER_CACHE: folder of what compilations keep; default intformer in the user's cache."""
    if folder := os.environ.get("INTFORMER_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:  # a relative XDG folder is to be ignored
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "intformer"
    except RuntimeError:  # a user without a home
        return None


def cuda_homes() -> list[str]:
    """CUDA_HOME, CUDA_PATH: where CUDA's toolkit is, as other programs take it."""
    return [home for home in map(os.environ.get, ("CUDA_HOME", "CUDA_PATH")) if home]


def nvcc_host_compiler() -> str | None:
    """NVCC_CCBIN: nvcc's own flag for the C++ compiler it calls."""
    return os.environ.get("NVCC_CCBIN")


@contextmanager
def tvm_keeps_sources():
    """TVM_COMPILE_FORCE_FALLBACK: set for TVM, whose CUDA runtime would compile a kernel's source.

    It loads where libcuda.so.1 is, and knows nothing of our prelude.
    """
    name = "TVM_COMPILE_FORCE_FALLBACK"
    with _one_thread:
        before = os.environ.get(name)
        os.environ[name] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise IntformerError(
            f"{name}={text!r} is not a whole number", where="environment", hint=f"unset {name}"
        )
    return int(text)
