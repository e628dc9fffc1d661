"""`intformer compile`: a checkpoint becomes a library."""

import argparse
from collections.abc import Callable
from pathlib import Path

from intformer.cli.options import Option, given, output_file
from intformer.cli.progress import Progress
from intformer.cli.text import Result, calibration_lines, source_lines

ABOUT = "compile a Hugging Face model directory or an ONNX file to a shared library"


def function() -> Callable:
    """Return the function whose parameters the options are."""
    from intformer.pipeline import compile

    return compile


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    from intformer.frontend.ibert import MODES
    from intformer.ir.heads import HEADS
    from intformer.qat.choices import RECIPES
    from intformer.quantize.methods import METHODS

    return {
        "source": Option("directory with config.json and weights, or an ONNX file", argument=True),
        "output": Option("library to write", ("-o", "--output"), parse=output_file),
        "target": Option("chip to compile for, see `intformer targets`; host: this CPU"),
        "calibrate": Option(
            "calibration text: a text per line, two texts separated by a tab, or a TSV with a "
            "header",
            metavar="FILE",
        ),
        "recipe": Option("(default: the one that suits the checkpoint)", choices=RECIPES),
        "mode": Option("how the scales of an IBert checkpoint are used", choices=MODES),
        "head": Option("(default: taken from the model directory)", choices=sorted(HEADS)),
        "method": Option(
            "calibration method (default: the best on held-out text)", choices=METHODS
        ),
        "tokenizer": Option("tokenizer.json to embed instead of the model's own", metavar="FILE"),
        "name": Option("NAME in intformer_get_NAME() (default: from the file name)"),
        "header": Option("also write the C and C++ headers and the loader next to the library"),
        "check": Option("also write NAME.check, which tests and times the library where it runs"),
        "dump_ir": Option("write the module after each phase here", metavar="DIR", parse=Path),
        "tuning_logs": Option("logs written by `intformer tune`", metavar="DIR|none"),
        "cache": Option("recompile every kernel"),
    }


def run(args: argparse.Namespace) -> Result:
    """Checkpoint to library."""
    from intformer.pipeline import compile

    progress = Progress()
    library = compile(**given(args, compile), progress=progress)
    about = library.metadata
    data = {
        "ok": True,
        "library": str(args.output),
        "bytes": args.output.stat().st_size,
        "seconds": round(progress.seconds, 1),
        **{key: about.get(key) for key in ("name", "target", "recipe", "mode", "head")},
        "calibration": about.get("calibration"),
        "warnings": about.get("warnings", []),
    }
    lines = [
        f"{args.output}: {data['bytes'] / 1e6:.1f} MB, {about['head']}, recipe {about['recipe']}, "
        f"target {about['target']}, {data['seconds']} s",
        *calibration_lines(about),
        *source_lines(about),
        *(f"warning: {warning}" for warning in data["warnings"]),
        f"next: intformer verify {args.output}",
    ]
    return data, lines
