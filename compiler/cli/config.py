"""`intformer config`: how programs in C and C++ are built."""

import argparse

from intformer.cli.options import Option
from intformer.cli.text import Result

ABOUT = "show the flags that compile C and C++ programs which open libraries"


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    return {
        "cflags": Option("where the headers are", default=False),
        "libs": Option("the source that opens libraries, and what it needs", default=False),
        "cmake": Option("folder with intformer-config.cmake", default=False),
    }


def run(args: argparse.Namespace) -> Result:
    """Flags for a compiler; all of them where none is asked for."""
    from intformer.link.config import flags

    found = flags()
    asked = [name for name in found if getattr(args, name)]
    if asked:
        return {name: found[name] for name in asked}, [" ".join(found[name] for name in asked)]
    return found, [f"{name}: {text}" for name, text in found.items()]
