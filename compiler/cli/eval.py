"""`intformer eval`: accuracy on labelled data."""

import argparse
from collections.abc import Callable

from intformer.cli.options import Option, given, positive
from intformer.cli.progress import Progress
from intformer.cli.text import Result, table

ABOUT = "measure accuracy on labelled data, and compare with the FP32 model"


def function() -> Callable:
    """Return the function whose parameters the options are."""
    from intformer.measure.accuracy import evaluate

    return evaluate


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    from intformer.measure.accuracy import TASKS

    return {
        "library": Option("compiled library", argument=True),
        "task": Option("one of " + ", ".join(TASKS), metavar="TASK"),
        "data": Option("columns: label, and sentence or sentence1 and sentence2", metavar="TSV"),
        "source": Option("model directory or ONNX file to compare with in FP32", metavar="SRC"),
        "limit": Option("rows to evaluate (default: all)", parse=positive),
        "batch": Option("sequences to run at a time", parse=positive),
    }


def run(args: argparse.Namespace) -> Result:
    """Accuracy on labelled data."""
    from intformer.measure.accuracy import evaluate

    result = evaluate(**given(args, evaluate), progress=Progress())
    columns = ["metric", "integer"]
    rows = [[name, f"{value:.4f}"] for name, value in result.integer.items()]
    if result.float is not None:
        columns += ["FP32", "difference"]
        for row, name in zip(rows, result.integer, strict=True):
            difference = result.integer[name] - result.float[name]
            row += [f"{result.float[name]:.4f}", f"{difference:+.4f}"]
    lines = [f"{args.task}: {result.rows} rows, {result.tokens} tokens", *table(columns, rows)]
    if result.changed is not None:
        lines.append(f"predictions changed: {result.changed} of {result.rows}")
    return result.to_json(), lines
