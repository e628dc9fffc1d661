"""SANITIZE=address or =thread: the C sources of libraries and of the tests' programs are built with
gcc's sanitizers (`make sanitize`). Tests that load a library into Python are left out then.
"""

import os

import pytest

KIND = os.environ.get("SANITIZE", "")
KINDS = {
    "": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
FLAGS = [*KINDS[KIND], "-g", "-fno-omit-frame-pointer"] if KIND else []
NEEDED = {"libasan.so.8", "libubsan.so.1", "libtsan.so.2", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}
STARTS = {"run_c", "lines", "Via", "via"}  # what starts a program that runs the library
LOADS = {"load", "lib"}  # what loads one into Python


def patch(monkeypatch) -> None:
    """Make the library builder use the sanitizers."""
    from intformer.link import build, program

    if KIND:
        monkeypatch.setattr(build, "CFLAGS", [*build.CFLAGS, *FLAGS])
        monkeypatch.setattr(build, "LDFLAGS", [*build.LDFLAGS, *FLAGS])
        monkeypatch.setattr(build, "NEEDED", build.NEEDED | NEEDED)
        monkeypatch.setattr(program, "FLAGS", [f for f in program.FLAGS if f != "-s"] + FLAGS)
        monkeypatch.setattr(program, "NEEDED", program.NEEDED | NEEDED)


def skip_others(items) -> None:
    """Skip tests that start no program."""
    skip = pytest.mark.skip(reason="loads the library into Python, which has no sanitizer")
    for item in items if KIND else ():
        names = {*item.function.__code__.co_names, *item.fixturenames}
        if not STARTS & names or LOADS & names:
            item.add_marker(skip)
