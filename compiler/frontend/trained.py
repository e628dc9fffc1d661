"""Quantization-aware trained directories of the native recipe: ranges come with the weights.

Beside config.json and model.safetensors there is RANGES_FILE, float32:

    peak.TAP      [C]  EMA of max|x| of every channel at a tap of FloatEncoder.forward
    factor.STEM   [K]  channel factors of the operand that multiplies with the weight STEM

and config.json has "intformer": {"recipe": "native", "weights": "channel" | "tensor", ...}.
"""

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.calibrated import completed, mask_token_id
from intformer.frontend.calibration import Seen
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import FloatEncoder
from intformer.frontend.families import read_encoder
from intformer.frontend.native import GRAINS, Plan, lower
from intformer.model import IntModel

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

    file = checkpoint.path / RANGES_FILE
    if not file.is_file():
        raise CheckpointError("no such file of learned ranges", where=str(file), hint=HINT)
    try:
        return load_file(file)
    except Exception as error:
        raise CheckpointError(f"cannot read it: {error}", where=str(file), hint=HINT) from error


def assemble(
    checkpoint: Checkpoint, ranges: dict[str, np.ndarray], weights: str, head: str | None
) -> IntModel:
    """Return the IntModel of float weights and learned ranges (keys as in RANGES_FILE)."""
    encoder, meta = read_encoder(checkpoint, head)
    seen, factors = check_ranges(encoder, ranges, str(checkpoint.path / RANGES_FILE))
    model = lower(encoder, seen, factors, "ema", ORIGIN.format(RANGES_FILE), weights=weights)
    files = checkpoint.files()
    training = {"recipe": "native", "weights": weights}
    mask_id = mask_token_id(files, meta)
    return completed(model, meta, files, mask_id, calibration={}, training=training)


def check_ranges(encoder: FloatEncoder, ranges: dict[str, np.ndarray], where: str):
    """Return (tap -> Seen, weight stem -> factors) of a ranges file that fits the encoder."""
    sizes = {PEAK + tap: size for tap, size in tap_sizes(encoder).items()}
    sizes |= {FACTOR + o.stem: o.linear.weight.shape[1] for o in Plan(encoder).operands()}
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


def tap_sizes(encoder: FloatEncoder) -> dict[str, int]:
    """Return tap -> channels for every tap whose range the lowering reads."""
    c = encoder.hidden
    sizes = {"embed.norm": len(encoder.norm.bias)}
    if encoder.projection is not None:
        sizes["embed.projection"] = c
    for i, layer in enumerate(encoder.layers):
        widths = {"qkv": 3 * c, "act": layer.ffn1.weight.shape[0]}
        for name in ("qkv", "context", "sum1", "norm1", "act", "sum2", "norm2"):
            sizes[f"layer{i}.{name}"] = widths.get(name, c)
    for i, stage in enumerate(encoder.head.stages):
        width = stage.linear.weight.shape[0]
        if stage.activation:
            sizes[f"head{i}.act"] = width
        if stage.norm:
            sizes[f"head{i}.norm"] = width
    return sizes
