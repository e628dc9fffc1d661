"""`intformer compile`: a checkpoint becomes a library."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from intformer.cli.options import Option, given, output_file, positive
from intformer.cli.progress import Progress
from intformer.cli.text import Result, calibration_lines, source_lines

if TYPE_CHECKING:
    from intformer.link.static import StaticLibrary

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
        "musl": Option("NAME.check is for musl (Alpine Linux) in place of glibc"),
        "static": Option(
            "write a static library, NAME.a, and its header: no threads, heap or libc"
        ),
        "max_tokens": Option(
            "tokens of one run of a static library (default: one sequence's)",
            metavar="N",
            parse=positive,
        ),
        "max_sequences": Option(
            "sequences of one run of a static library (default: 1)", metavar="N", parse=positive
        ),
        "max_positions": Option(
            "positions of one run of a static library (default: a sequence's)",
            metavar="N",
            parse=positive,
        ),
        "dump_ir": Option("write the module after each phase here", metavar="DIR", parse=Path),
        "tuning_logs": Option("logs written by `intformer tune`", metavar="DIR|none"),
        "cache": Option("recompile every kernel"),
    }


def run(args: argparse.Namespace) -> Result:
    """Checkpoint to library."""
    from intformer.pipeline import compile

    progress = Progress()
    library = compile(**given(args, compile), progress=progress)
    if args.static:
        return _static(library, progress)
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


def _static(library: "StaticLibrary", progress: Progress) -> Result:
    """Say what a static library needs."""
    limits = vars(library.limits)
    data = {
        "ok": True,
        "library": str(library.path),
        "header": str(library.header),
        "example": str(library.example),
        "bytes": library.path.stat().st_size,
        "seconds": round(progress.seconds, 1),
        "name": library.name,
        "target": library.target,
        "code_bytes": library.code_bytes,
        "weight_bytes": library.weight_bytes,
        "arena_bytes": library.arena_bytes,
        **{f"max_{kind}s": most for kind, most in limits.items()},
        "warnings": library.warnings,
    }
    most = ", ".join(f"{most} {kind}s" for kind, most in limits.items() if most)
    lines = [
        f"{library.path}: {library.code_bytes / 1e3:.1f} kB of code, "
        f"{library.weight_bytes / 1e3:.1f} kB of weights, target {library.target}, "
        f"{data['seconds']} s",
        f"a run takes {most} at most, and an arena of {library.arena_bytes / 1e3:.1f} kB",
        *(f"warning: {warning}" for warning in library.warnings),
        f"next: see {library.example}",
    ]
    return data, lines
