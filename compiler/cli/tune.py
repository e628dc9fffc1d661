"""`intformer tune`: auto-scheduling."""

import argparse
from collections.abc import Callable
from pathlib import Path

from intformer.cli.options import Option, counts, given, positive
from intformer.cli.progress import Progress
from intformer.cli.text import Result, table

ABOUT = "search for fast kernels; resumes if interrupted"


def function() -> Callable:
    """Return the function whose parameters the options are."""
    from intformer.tuning.driver import tune

    return tune


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    return {
        "source": Option("model directory or ONNX file; or use --shape", argument=True),
        "shape": Option("a well-known shape: bert-base, minilm-l6, ..."),
        "target": Option("chip to tune for, see `intformer targets`; host: this CPU"),
        "trials": Option("candidates to measure in total, over all runs", parse=positive),
        "out": Option("directory of the logs", metavar="DIR", parse=Path),
        "tokens": Option("token counts to tune for", metavar="N,N,...", parse=counts),
        "rpc": Option("TVM RPC tracker whose machines measure", metavar="HOST:PORT"),
        "rpc_key": Option("key of these machines", metavar="KEY"),
        "via": Option("command that runs programs on a board: 'ssh HOST'", metavar="COMMAND"),
        "timeout": Option("seconds to build or to measure one candidate", parse=positive),
        "jobs": Option("build processes (default: one per CPU)", parse=positive),
        "threads": Option("threads of the measured kernels", parse=positive),
        "seed": Option("seed of the search", parse=int),
    }


def run(args: argparse.Namespace) -> Result:
    """Auto-scheduling."""
    from dataclasses import asdict

    from intformer.measure.bench import command
    from intformer.tuning.driver import tune

    report = tune(**given(args, tune), command=command(), progress=Progress(always=True))
    rows = [
        (
            *(line.kernel, line.rows, f"{line.default * 1e3:.3f}", f"{line.chosen * 1e3:.3f}"),
            f"{line.ratio:.2f}x",
            " ".join(f"{name}={value}" for name, value in line.decisions.items()),
        )
        for line in report.lines
    ]
    failed = ", ".join(f"{kind}: {count}" for kind, count in report.failures.items()) or "none"
    lines = [
        *table(["kernel", "rows", "default ms", "tuned ms", "ratio", "decisions"], rows),
        "",
        f"{report.trials} candidates measured; failed in this run: {failed}",
        f"next: intformer compile SRC -o LIB --target {report.target} --tuning-logs {report.logs}",
    ]
    return asdict(report), lines
