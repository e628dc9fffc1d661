"""`intformer package`: a library becomes a wheel and a Dockerfile."""

import argparse
from collections.abc import Callable
from dataclasses import asdict

from intformer.cli.options import Option, given
from intformer.cli.text import Result

ABOUT = "write a wheel that holds a library, and a Dockerfile that serves it"


def function() -> Callable:
    """Return the function whose parameters the options are."""
    from intformer.ship import package

    return package


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    return {
        "library": Option("compiled library", argument=True),
        "output": Option("folder to write into", ("-o", "--output"), metavar="DIR"),
        "name": Option("of the package (default: from the file name)"),
        "version": Option("of the package"),
    }


def run(args: argparse.Namespace) -> Result:
    """Write both."""
    from intformer.ship import package

    made = package(**given(args, package))
    data = {key: str(value) for key, value in asdict(made).items()}
    lines = [
        f"{made.wheel}: pip install it, import {made.module}, {made.module}.predict([...])",
        f"{made.dockerfile}: an image that serves it",
    ]
    return data, lines
