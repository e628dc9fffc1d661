"""`intformer verify`: the proof that a library is integer-only and exact."""

import argparse
from collections.abc import Callable

from intformer.cli.options import Option, given, positive
from intformer.cli.progress import Progress
from intformer.cli.text import Result

ABOUT = "prove that a library is integer-only and exact"


def function() -> Callable:
    """Return the function whose parameters the options are."""
    from intformer.proof.verify import verify

    return verify


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    return {
        "library": Option("compiled library", argument=True),
        "source": Option("model directory to import again and compare with", metavar="SRC"),
        "calibrate": Option("calibration text that SRC was compiled with", metavar="FILE"),
        "tokenizer": Option("tokenizer.json that SRC was compiled with", metavar="FILE"),
        "texts": Option("file of real inputs to run as well", metavar="FILE"),
        "limit": Option("texts to run", parse=positive),
        "cases": Option("random batches to run", parse=positive),
        "seed": Option("seed of the random batches", parse=int),
        "via": Option(
            "command that runs a library for another machine, such as `qemu-aarch64 -cpu max`",
            metavar="COMMAND",
        ),
        "run": Option("only read the file, for instance without the GPU it is for"),
    }


def run(args: argparse.Namespace) -> Result:
    """Proof that a library is integer-only and exact."""
    from intformer.proof.verify import verify

    report = verify(**given(args, verify), progress=Progress())
    lines = []
    for check in report.checks:
        mark = ("ok  " if check.ok else "FAIL") if check.ran else "----"
        lines.append(f"{mark}  {check.name}: {check.detail}")
        lines += [f"        {where}: {what}" for where, what in check.findings[:10]]
        if len(check.findings) > 10:
            lines.append(f"        and {len(check.findings) - 10} more (--json shows all)")
    lines += [report.scope, verified_line(report)]
    return report.to_json(), lines


def verified_line(report) -> str:
    """Return the verdict in a line; what did not run is named."""
    unrun = " and ".join(dict.fromkeys(check.name for check in report.checks if not check.ran))
    if report.ok:
        return f"verified, except {unrun}" if unrun else "verified"
    if all(check.ok or not check.ran for check in report.checks):
        return f"NOT verified: {unrun} did not run here - --no-run leaves them out"
    return "NOT verified"
