"""How programs in C and C++ that open libraries are built; needs nothing of the compiler."""

import shlex
from pathlib import Path

HEADERS = Path(__file__).parent / "c"


def flags() -> dict[str, str]:
    """Return the flags of a C compiler, quoted for a shell; of CMake its intformer_DIR."""
    opener = HEADERS / "intformer_open.c"
    return {
        "cflags": shlex.quote(f"-I{HEADERS}"),
        "libs": f"{shlex.quote(str(opener))} -ldl -lpthread",
        "cmake": str(HEADERS),
    }
