"""`intformer train`: fine-tuning in FP32, then quantization-aware training."""

import argparse
from collections.abc import Callable
from pathlib import Path

from intformer.cli.options import Option, count_or_none, given, positive
from intformer.cli.progress import Progress
from intformer.cli.text import Result, table

ABOUT = "fine-tune, then train with quantization; resumes if interrupted"


def function() -> Callable:
    """Return the function whose parameters the options are."""
    from intformer.qat.training import train

    return train


def options() -> dict[str, Option]:
    """Return how each parameter is given."""
    from intformer.qat.choices import NONLINEAR, RECIPES
    from intformer.qat.settings import PRECISIONS
    from intformer.qat.tasks import NAMES
    from intformer.quantize.native.scales import GRAINS

    return {
        "source": Option("directory of a pretrained encoder", argument=True),
        "task": Option("one of " + ", ".join(NAMES), metavar="TASK"),
        "train": Option("labelled rows to train on", metavar="FILE"),
        "dev": Option("labelled rows that each stage is scored on once", metavar="FILE"),
        "output": Option("directory to create", ("-o", "--output"), metavar="DIR", parse=Path),
        "recipe": Option("numerics to train for", choices=RECIPES),
        "nonlinear": Option(
            "softmax, GELU and LayerNorm; float with --weights tensor is Q8BERT", choices=NONLINEAR
        ),
        "weights": Option("weights that share a scale", choices=GRAINS),
        "epochs": Option("of the FP32 stage; 0: SRC is already fine-tuned", parse=count_or_none),
        "qat_epochs": Option("of the quantized stage; 0: skip it", parse=count_or_none),
        "lr": Option("learning rate of the FP32 stage", parse=float),
        "qat_lr": Option("learning rate of the quantized stage", parse=float),
        "batch": Option("sequences per step", parse=positive),
        "max_length": Option("longest sequence, in tokens", parse=positive),
        "rows": Option("random sample of the training rows to use (default: all)", parse=positive),
        "seed": Option("seed of all random choices", parse=int),
        "distill": Option("also learn from the FP32 model"),
        "patience": Option(
            "stop a stage after this many evaluations without improvement", parse=positive
        ),
        "precision": Option(
            "of matrix products during training; auto: bf16 where the hardware has it",
            choices=PRECISIONS,
        ),
    }


def run(args: argparse.Namespace) -> Result:
    """Fine-tuning in FP32, then with quantization."""
    from intformer.qat.training import train

    result = train(**given(args, train), progress=Progress())
    stages = result["stages"]
    rows = [
        (metric, *(f"{stage['dev'][metric]:.4f}" for stage in stages.values()))
        for metric in next(iter(stages.values()))["dev"]
    ]
    made = args.output / list(stages)[-1]
    lines = [
        ", ".join(f"{name} {count} rows" for name, count in result["rows"].items()),
        *(table(["dev", *stages], rows) if args.dev else []),
        f"{made}, {args.output / 'metrics.json'}, {args.output / 'curve.png'}",
    ]
    if args.nonlinear == "integer" or "qat" not in stages:  # no integer program is plain Q8BERT
        ranges = "" if "qat" in stages else f" --calibrate {args.train}"
        lines.append(f"next: intformer compile {made} -o {args.task}.so{ranges}")
    return result, lines
