"""`intformer triton`: a library becomes a model of Triton."""

import argparse
from collections.abc import Callable
from dataclasses import asdict

from intformer.cli.options import Option, count_or_none, given, positive
from intformer.cli.text import Result

ABOUT = "write a model repository for NVIDIA's Triton Inference Server"


def function() -> Callable:
    """Return the function whose parameters the options are."""
    from intformer.ship.triton import triton_repository

    return triton_repository


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    return {
        "library": Option("compiled library that embeds or classifies texts", argument=True),
        "output": Option("folder of the repository", ("-o", "--output"), metavar="DIR"),
        "name": Option("of the model (default: from the file name)"),
        "max_batch_size": Option("sequences that run together", parse=positive),
        "queue_delay": Option(
            "microseconds that a request may wait for others", parse=count_or_none
        ),
    }


def run(args: argparse.Namespace) -> Result:
    """Write it."""
    from intformer.ship.triton import triton_repository

    made = triton_repository(**given(args, triton_repository))
    data = {**asdict(made), "folder": str(made.folder)}
    return data, [
        f"{made.folder}: version {made.version} of model {made.model}",
        f"tritonserver --model-repository {made.folder.parent}",
    ]
