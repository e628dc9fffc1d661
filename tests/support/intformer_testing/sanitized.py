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
    # clang's, which a program brings and its libraries find in it
    "fuzzer": [
        "-fsanitize=address,undefined,fuzzer-no-link",
        "-fno-sanitize-recover=all",
        "-Wl,-z,undefs",
    ],
}
NEEDED = {"libasan.so.8", "libubsan.so.1", "libtsan.so.2", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}
STARTS = {"run_c", "lines", "Via", "via"}  # what starts a program that runs the library
LOADS = {"load", "lib"}  # what loads one into Python


def flags(kind: str = KIND) -> list[str]:
    """Return the compiler's flags for a kind of sanitizers."""
    return [*KINDS[kind], "-g", "-fno-omit-frame-pointer"] if kind else []


def patch(monkeypatch, kind: str = KIND) -> None:
    """Make the library builder use the sanitizers."""
    from intformer.link import build, program

    if kind:
        monkeypatch.setattr(build, "CFLAGS", [*build.CFLAGS, *flags(kind)])
        monkeypatch.setattr(build, "LDFLAGS", [*build.LDFLAGS, *flags(kind)])
        monkeypatch.setattr(build, "NEEDED", build.NEEDED | NEEDED)
        kept = [flag for flag in program.FLAGS if flag != "-s"]
        monkeypatch.setattr(program, "FLAGS", kept + flags(kind))
        monkeypatch.setattr(program, "NEEDED", program.NEEDED | NEEDED)


def skip_others(items) -> None:
    """Skip tests that start no program."""
    skip = pytest.mark.skip(reason="loads the library into Python, which has no sanitizer")
    for item in items if KIND else ():
        names = {*item.function.__code__.co_names, *item.fixturenames}
        if not STARTS & names or LOADS & names:
            item.add_marker(skip)
