"""FP32 checkpoint plus calibration text -> IntModel: reads, observes, chooses, lowers."""

from pathlib import Path

import numpy as np

from intformer.edge import Edge
from intformer.errors import CheckpointError
from intformer.frontend import calibration
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.families import read_encoder
from intformer.frontend.native import Plan, equalisation, lower
from intformer.frontend.progress import progress
from intformer.frontend.scales import METHODS
from intformer.model import IntModel

JUDGED_TOKENS = 2048  # of the held-out text, run through the integer reference for each method


def import_calibrated(
    checkpoint: Checkpoint, *, recipe=None, mode=None, head=None, calibrate=None, method=None
) -> IntModel:
    """Read an FP32 encoder and calibrate it (arguments: import_model)."""
    if recipe not in (None, "native") or mode is not None:
        wrong = f"mode {mode!r}" if mode is not None else f"recipe {recipe!r}"
        raise CheckpointError(
            f"{wrong} needs an IBert checkpoint",
            where=str(checkpoint.path),
            hint="leave it out: calibrated models use recipe native",
        )
    if method not in (None, *METHODS):
        raise CheckpointError(
            f"calibration method {method!r} is not known", hint="one of " + ", ".join(METHODS)
        )
    encoder, meta = read_encoder(checkpoint, head)
    if calibrate is None:
        raise CheckpointError(
            "no activation scale: this checkpoint holds none and nothing calibrates it",
            where=str(checkpoint.path),
            hint=calibration.HINT,
        )
    files = checkpoint.files()
    ranges, held = calibration.choose(sequences(calibrate, files, meta))
    mask_id = mask_token_id(files) if meta["head"] == "masked-lm" else None
    inputs = calibration.batches(ranges, meta, mask_id)
    seen = calibration.observe(encoder, inputs)
    tokens = sum(len(batch["input_ids"]) for batch in inputs)
    note = f"{len(ranges)} sequences, {tokens} tokens"
    judged = calibration.batches(held, meta, mask_id)[
        : -(-JUDGED_TOKENS // calibration.BATCH_TOKENS)
    ]
    model, scores = best(encoder, seen, judged, note, METHODS if method is None else (method,))
    model.meta = {
        **meta,
        **model.meta,
        "mode": None,
        "mask_token_id": mask_id,
        "tokenizer": sorted(name for name in files if name != "config.json"),
        "calibration": {
            "method": max(scores, key=scores.get),
            "held_out_snr_db": {name: round(score, 2) for name, score in scores.items()},
            "sequences": len(ranges),
            "tokens": tokens,
            "held_out_sequences": len(held),
        },
    }
    model.files = files
    return model


def import_uncalibrated(checkpoint: Checkpoint, head: str | None = None) -> IntModel:
    """Read an FP32 encoder with scales from a few random tokens: right in form, wrong in numbers.

    For what depends on shapes alone, such as tuning.
    """
    encoder, meta = read_encoder(checkpoint, head)
    ids = np.random.default_rng(0).integers(0, meta["vocab_size"], 16, dtype=np.int32)
    (batch,) = calibration.batches([(ids, np.zeros(16, np.int32))], meta)
    seen = calibration.observe(encoder, [batch])
    factors = {o.stem: np.ones(o.linear.weight.shape[1]) for o in Plan(encoder).operands()}
    model = lower(encoder, seen, factors, "minmax", "calibration: minmax, 16 random tokens")
    model.meta = {**meta, **model.meta}
    return model


def sequences(calibrate, files: dict[str, bytes], meta: dict) -> list[calibration.Sequence]:
    """Return calibration data, in any of the forms import_model takes, as token sequences."""
    if isinstance(calibrate, str | Path):
        calibrate = calibration.read_texts(calibrate)
    calibrate = list(calibrate)
    if not calibrate:
        raise CheckpointError("calibration text is empty", hint=calibration.HINT)
    items = [item if isinstance(item, tuple) else (item,) for item in calibrate]
    if all(isinstance(part, str) for item in items for part in item):
        found = calibration.encode(items, files.get("tokenizer.json"), meta)
    else:
        found = [
            (np.array(ids, np.int32), np.array(types[0] if types else np.zeros(len(ids)), np.int32))
            for ids, *types in items
        ]
    return calibration.check_ids(found, meta)


def mask_token_id(files: dict[str, bytes]) -> int | None:
    """Return the id of the tokenizer's mask token; None without a tokenizer."""
    return Edge({}, files).mask_id if "tokenizer.json" in files else None


def snr_db(wanted: np.ndarray, got: np.ndarray) -> float:
    """Return the signal-to-noise ratio of `got` against `wanted` in dB."""
    noise = float(np.square(got - wanted).sum())
    return 10 * float(np.log10(max(float(np.square(wanted).sum()), 1e-30) / max(noise, 1e-30)))


def score(wanted: np.ndarray, model: IntModel, inputs: list[dict]) -> float:
    """Return the SNR of the integer reference's output against the float one, in dB."""
    scale = model.meta["output_scale"]
    got = np.concatenate([model.run(batch)[model.output] for batch in inputs])
    return snr_db(wanted, got * scale)


def best(encoder, seen, inputs, note: str, methods) -> tuple[IntModel, dict[str, float]]:
    """Lower with every method; return the one with the best output and every method's score."""
    chosen, scores = None, {}
    factors, rounded = equalisation(encoder, seen), {}
    wanted = np.concatenate([encoder.forward(batch) for batch in inputs])
    for method in progress(methods, "choosing the calibration method"):
        origin = f"calibration: {method}, {note}"
        model = lower(encoder, seen, factors, method, origin, rounded)
        scores[method] = score(wanted, model, inputs)
        if scores[method] >= max(scores.values()):
            chosen = model
    return chosen, scores
