"""`intformer bench`: speed of a library."""

import argparse
from collections.abc import Callable

from intformer.cli.options import Option, amount, given, positive, shapes
from intformer.cli.progress import Progress
from intformer.cli.text import Result, table

ABOUT = "race a library against PyTorch FP32, with the time of each kernel"


def function() -> Callable:
    """Return the function whose parameters the options are."""
    from intformer.measure.bench import bench

    return bench


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    return {
        "library": Option("compiled library; or use --shape", argument=True),
        "source": Option("model directory or ONNX file to race in FP32", metavar="SRC"),
        "shape": Option("compile and race random weights: bert-base, minilm-l6, ..."),
        "target": Option("target of --shape; host: this CPU"),
        "batch": Option("random sequences in a batch", parse=positive),
        "tokens": Option("tokens in each of them", parse=positive),
        "data": Option("race on the first --limit rows of this file instead", metavar="TSV"),
        "limit": Option("rows of --data", parse=positive),
        "against": Option("another library to race; may be repeated", metavar="LIB", repeat=True),
        "threads": Option("threads of every contestant", parse=positive),
        "seconds": Option("seconds per contestant", parse=positive),
        "per_op": Option("time each step instead of each kernel"),
        "predict": Option(
            "predict the time on a GPU you don't have: t4, a100, h100 or h200", metavar="CHIP"
        ),
        "shapes": Option(
            "shapes of the prediction, sequences x tokens (default: 1,2,4,8 x 128,256)",
            parse=shapes,
        ),
        "clock": Option(
            "clock of the prediction (default: the boost clock)", metavar="GHZ", parse=amount
        ),
        "watts": Option("power cap of the prediction (default: the chip's)", parse=amount),
    }


def run(args: argparse.Namespace) -> Result:
    """Speed, compared with PyTorch; or predicted for a GPU."""
    from intformer.measure.bench import Race, bench

    found = bench(**given(args, bench), progress=Progress())
    lines = race_lines(found) if isinstance(found, Race) else prediction_lines(found)
    return found.to_json(), lines


def prediction_lines(found) -> list[str]:
    """Return the tables of a prediction: the shapes, and the kernels of the first of them."""
    state = "checked against measured times" if found.checked else "UNCHECKED against any GPU"
    others = list(dict.fromkeys(who for shape in found.shapes for who in shape.published))
    rows = [
        (
            f"{shape.batch}x{shape.tokens}",
            f"{shape.milliseconds:.2f}",
            f"{shape.ghz:.2f}",
            "" if shape.watts is None else f"{shape.watts:.0f}",
            f"{shape.gaps:.2f}",
            *(f"{shape.published[who]:.2f}" if who in shape.published else "" for who in others),
        )
        for shape in found.shapes
    ]
    first = found.shapes[0]
    kernels = [
        (
            kernel.kernel,
            kernel.calls,
            f"{kernel.microseconds:.1f}",
            kernel.blocks,
            kernel.resident,
            f"{kernel.instructions:.1f}",
            f"{kernel.memory:.1f}",
            f"{kernel.cache:.1f}",
            kernel.binds,
        )
        for kernel in first.kernels
    ]
    header = ["kernel", "calls", "us", "blocks", "an SM holds"]
    header += ["instructions", "memory", "cache", "binds"]
    return [
        f"PREDICTION for {found.title} from its public limits, {state}",
        f"{found.library}; at most {found.ghz} GHz and {found.watts:g} W",
        "",
        *table(
            ["shape", "predicted ms", "GHz", "W", "of it gaps", *(f"{w}, ms" for w in others)], rows
        ),
        "",
        f"kernels of {first.batch}x{first.tokens}, microseconds of one launch",
        *table(header, kernels),
        "",
        "assumed:",
        *(f"  {line}" for line in found.assumptions),
    ]


def race_lines(race) -> list[str]:
    """Return the tables of a race."""
    rows = [
        (row.name, f"{row.median:.2f}", f"{row.p10:.2f}", f"{row.p90:.2f}", f"{row.ratio:.2f}x")
        for row in race.rows
    ]
    lines = [
        race.title,
        "; ".join(f"{key} {value}" for key, value in race.machine.items()),
        "",
        *table(["contestant", "median ms", "p10", "p90", "ours is faster by"], rows),
    ]
    if race.ops:
        ops = [
            (
                op.name,
                op.calls,
                f"{op.milliseconds:.3f}",
                f"{100 * op.share:.1f} %",
                f"{op.bytes / 1e6:.2f}",
                f"{op.operations / 1e9:.3f}" if op.operations else "",
                f"{op.gops:.0f}" if op.gops else "",
                f"{100 * op.roof:.0f} %" if op.roof else "",
                op.bound or "",
            )
            for op in race.ops
        ]
        header = ["kernel", "calls", "ms", "share", "MB", "GOP", "GOP/s", "of roof", "bound by"]
        lines += ["", *table(header, ops)]
    if race.verified is not None:
        failed = f"NOT verified: {'; '.join(race.unverified)}"
        lines += ["", f"raced libraries: {'verified' if race.verified else failed}"]
    return lines
