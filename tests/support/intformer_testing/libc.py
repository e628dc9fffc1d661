"""What a library asks of the C library, and whether zig can link for another one."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from intformer.runtime.image import Image

WEAK = 2  # binding of a symbol
BOTH = {"__errno_location", "__stack_chk_fail"}  # reserved names that glibc and musl have
RESOLVED = ("libc.", "libm.", "libpthread.")  # what musl's loader takes for itself
DT_NEEDED = 1
needs_zig = pytest.mark.skipif(
    not find_spec("ziglang"), reason="this machine lacks the ziglang package"
)


def only_in_glibc(path: Path) -> set[str]:
    """Return the functions and libraries that a file needs and musl does not have.

    Of reserved names, musl has few; all others of link/c/imports.txt are POSIX.
    """
    image = Image(memoryview(Path(path).read_bytes()), str(path))
    strong = {s.name for s in image.symbols if not s.section and s.info >> 4 != WEAK}
    libraries = {image.name(value) for tag, value in image.dynamic if tag == DT_NEEDED}
    return {name for name in strong if name.startswith("__")} - BOTH | {
        name for name in libraries if not name.startswith(RESOLVED)
    }
