"""Quantization-aware trained directories of the native recipe: ranges come with the weights.

Beside config.json and model.safetensors there is RANGES_FILE, float32:

    peak.EDGE     [C]  EMA of max|x| of every channel of an edge of Graph.ranged
    factor.STEM   [K]  channel factors of the operand that multiplies with the weight STEM

and config.json has "intformer": {"recipe": "native", "weights": "channel" | "tensor", ...}.
"""

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.calibrated import completed, mask_token_id
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.frontend.folder import reason
from intformer.ir.graph import Graph
from intformer.ir.model import IntModel
from intformer.quantize.native import lower
from intformer.quantize.native.scales import GRAINS
from intformer.quantize.observe import Seen

CONFIG_KEY = "intformer"
RANGES_FILE = "intformer_ranges.safetensors"
PEAK, FACTOR = "peak.", "factor."
ORIGIN = "checkpoint: {}, EMA of max|x| in training"
HINT = "save it with Prepared.save_pretrained, or pass --calibrate FILE to set ranges anew"


def import_trained(
    checkpoint: Checkpoint, *, recipe=None, mode=None, head=None, method=None
) -> IntModel:
    """Read a trained directory (arguments: import_model)."""
    for name, value, legal in (
        ("recipe", recipe, (None, "native")),
        ("mode", mode, (None,)),
        ("method", method, (None,)),
    ):
        if value not in legal:
            raise CheckpointError(
                f"{name} {value!r} does not go with a model trained for recipe native",
                where=str(checkpoint.path),
                hint="leave it out: its ranges were learned",
            )
    weights = settings(checkpoint).get("weights", "channel")
    if not is_integer(checkpoint):
        raise CheckpointError(
            f"config key '{CONFIG_KEY}.nonlinear' says float: no integer program computes it",
            where=str(checkpoint.path / "config.json"),
            hint="train it with nonlinear 'integer', or pass --calibrate FILE",
        )
    if weights not in GRAINS:
        raise CheckpointError(
            f"config key '{CONFIG_KEY}.weights' = {weights!r} is not supported",
            where=str(checkpoint.path / "config.json"),
            hint="one of " + ", ".join(GRAINS),
        )
    return assemble(checkpoint, read_ranges(checkpoint), weights, head)


def is_trained(checkpoint: Checkpoint) -> bool:
    """Whether config.json says that ranges for recipe native were learned."""
    return settings(checkpoint).get("recipe") == "native"


def is_integer(checkpoint: Checkpoint) -> bool:
    """Whether it was trained as an integer program computes it."""
    return settings(checkpoint).get("nonlinear", "integer") == "integer"


def settings(checkpoint: Checkpoint) -> dict:
    """Return what config.json says about training; empty where it says nothing."""
    return checkpoint.setting(CONFIG_KEY, dict, {})


def read_ranges(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Return the arrays of RANGES_FILE."""
    from safetensors.numpy import load_file

    file = checkpoint.file(RANGES_FILE)
    if file is None:
        where = str(checkpoint.path / RANGES_FILE)
        raise CheckpointError("no such file of learned ranges", where=where, hint=HINT)
    try:
        return load_file(file)
    except Exception as error:
        raise CheckpointError(
            f"cannot read it: {reason(error)}", where=str(file), hint=HINT
        ) from error


def assemble(
    checkpoint: Checkpoint, ranges: dict[str, np.ndarray], weights: str, head: str | None
) -> IntModel:
    """Return the IntModel of float weights and learned ranges (keys as in RANGES_FILE)."""
    graph, meta = read_encoder(checkpoint, head)
    seen, factors = check_ranges(graph, ranges, str(checkpoint.path / RANGES_FILE))
    model = lower(graph, seen, factors, "ema", ORIGIN.format(RANGES_FILE), weights=weights)
    files = checkpoint.files()
    training = {"recipe": "native", "weights": weights}
    mask_id = mask_token_id(files, meta)
    return completed(model, meta, files, mask_id, calibration={}, training=training)


def check_ranges(graph: Graph, ranges: dict[str, np.ndarray], where: str):
    """Return (edge -> Seen, weight stem -> factors) of a ranges file that fits the graph."""
    sizes = {PEAK + edge: size for edge, size in graph.ranged().items()}
    sizes |= {FACTOR + o.stem: o.linear.weight.shape[1] for o in graph.operands()}
    for key, size in sizes.items():
        found = ranges.get(key)
        if found is None:
            raise CheckpointError(f"range {key!r} is missing", where=where, hint=HINT)
        good = found.shape == (size,) and np.isfinite(found).all()
        positive = found.min() > 0 if key.startswith(FACTOR) else found.min() >= 0
        if not (good and positive):
            raise CheckpointError(
                f"range {key!r} is no {size} numbers above 0", where=where, hint=HINT
            )
    seen = {
        key.removeprefix(PEAK): Seen.known(ranges[key]) for key in sizes if key.startswith(PEAK)
    }
    factors = {
        key.removeprefix(FACTOR): ranges[key].astype(np.float64)
        for key in sizes
        if key.startswith(FACTOR)
    }
    return seen, factors
