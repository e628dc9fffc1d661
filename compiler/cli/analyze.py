"""`intformer analyze`: where accuracy is lost."""

import argparse
from collections.abc import Callable

from intformer.cli.options import Option, count_or_none, given, output_file, positive
from intformer.cli.progress import Progress
from intformer.cli.text import Result, decibels, table

ABOUT = "show where accuracy is lost and what helps, as an HTML report"


def function() -> Callable:
    """Return the function whose parameters the options are."""
    from intformer.analysis.study import analyze

    return analyze


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    from intformer.frontend.ibert import MODES
    from intformer.ir.heads import HEADS
    from intformer.quantize.methods import METHODS

    return {
        "source": Option("model directory or ONNX file", argument=True),
        "calibrate": Option(
            "calibration text: a text per line, two texts separated by a tab, or a TSV with a "
            "header",
            metavar="FILE",
        ),
        "output": Option("report to write", ("-o", "--output"), metavar="HTML", parse=output_file),
        "method": Option(
            "calibration method (default: the best on held-out text)", choices=METHODS
        ),
        "rows": Option("evenly spaced sample of the rows to use (default: all)", parse=positive),
        "qat_steps": Option(
            "steps of quantized training without labels to try as a remedy; 0: none",
            metavar="N",
            parse=count_or_none,
        ),
        "mode": Option("how the scales of an IBert checkpoint are used", choices=MODES),
        "head": Option("(default: taken from the model directory)", choices=sorted(HEADS)),
        "tokenizer": Option("tokenizer.json to use instead of the model's own", metavar="FILE"),
    }


def run(args: argparse.Namespace) -> Result:
    """Why accuracy is lost."""
    from intformer.analysis.study import analyze
    from intformer.measure.bench import command

    found = analyze(**given(args, analyze), command=command(), progress=Progress())
    rows = [
        (r.name, f"{r.share:.1%}", decibels(r.grid_db), decibels(r.total_db), r.cause, r.why)
        for r in found.ranked()[:10]
    ]
    tried = [
        (r.name, f"{r.snr_db:.1f}", f"{r.agreement:.4f}", r.options or "") for r in found.remedies
    ]
    tried += [(name, "", "", f"not tried: {why}") for name, why in found.untried.items()]
    lines = [
        f"output: {found.snr_db:.1f} dB against FP32, {found.agreement_of} {found.agreement:.4f}, "
        f"on {found.held_sequences} held-out sequences ({found.held_tokens} tokens)",
        "",
        *table(["tensor", "share", "grid dB", "so far dB", "cause", "why"], rows),
        "",
        *table(["scales", "SNR dB", found.agreement_of, "option of compile"], tried),
        "",
        *([f"{args.output}: every tensor, with plots"] if args.output else []),
    ]
    return {**found.to_json(), "report": args.output and str(args.output)}, lines
