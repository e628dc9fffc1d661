"""I-BERT checkpoints (transformers IBert*, trained with quant_mode) -> IntModel, recipe "ibert".

Integers are recomputed from the float weights and the recorded ranges, in float32 and in the order
of transformers' quant_modules; the checkpoint's own *_integer buffers are not read, they are zero
or stale until a quantized forward. What is kept as it is there, because models are trained with it:

* every layer takes the embedding's scale for its input's (mode hf_compat; transformers#26738). So
  at layers >= 1 the Q, K, V accumulators and the attention residual are first brought to that
  scale. Mode fixed uses the true scales.
* two requantizations in a row, 8 bits to 8, before fc1 and before fc2;
* the residual of the second half is what fc1 reads, not what LayerNorm gave;
* softmax.act holds its range in integer units (transformers#11755).
"""

from itertools import pairwise
from pathlib import Path

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend import calibrated, calibration, labels, sentence_transformers
from intformer.frontend import ibert_diagnostics as diagnostics
from intformer.frontend.calibrated import mask_token_id
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import notes, pick_head
from intformer.frontend.ibert_encoder import Reader
from intformer.frontend.ibert_head import Head
from intformer.ir.model import IntModel
from intformer.progress import progress
from intformer.relay_ops import attention_ibert
from intformer.relay_ops.attention import scores

MODES = ("hf_compat", "fixed")
CALIBRATION_SENTENCES = 64  # run through the NumPy reference
WIDTHS = {
    "embedding tables": "int8, one scale per table",
    "embedding sum": "int16 range in int32",
    "matmul operands": "int8",
    "weights": "int8, -127..126, one scale per output channel",
    "bias": "int32",
    "accumulators": "int32",
    "LayerNorm input": "22 bits in int32",
    "GELU": "int32 in, 70-bit product, int8 out",
    "softmax exponentials": "16 bits",
    "softmax output": "uint8, scale 1/256, floor",
    "context accumulator": "int32",
    "logits": "int32, one scale",
}
DEVIATIONS = {  # from transformers' float simulation; every mode
    "softmax 256": "a probability of 256/256 is 255/256: 256 is no uint8",
    "constant row": "a LayerNorm row of one value gives beta; transformers gives NaN",
    "exact integers": "sums, products and roots are exact; transformers rounds them to float32, "
    "and its requantize product to float64",
    "head": "the float head (dense, tanh or GELU and LayerNorm, output) runs in integers",
}
LEAK = {
    "hf_compat": (
        "embedding scale",
        "true scale / embedding scale is a 31-bit dyadic number; transformers divides in float32",
    ),
    "fixed": (
        "embedding scale",
        "layers after the first use the true scale of their input; transformers uses the "
        "embedding's, and the checkpoint was trained with that",
    ),
}


def read(source: str | Path, *, mode: str = "hf_compat", calibrate=None, head=None) -> IntModel:
    """Read an IBert directory.

    mode       "hf_compat" or "fixed" (see above)
    calibrate  text or token ids as import_model takes them; sets the scale of a masked-LM head and
               checks how much of its mass attention keeps. Encoder ranges come from the checkpoint.
    head       as import_model takes it
    """
    return import_ibert(Checkpoint(source), mode=mode, calibrate=calibrate, head=head)


def import_ibert(
    checkpoint: Checkpoint, *, recipe=None, mode=None, head=None, calibrate=None, method=None
) -> IntModel:
    """Read an IBert checkpoint (arguments: import_model)."""
    mode = mode or MODES[0]
    if mode not in MODES:
        raise CheckpointError(f"mode {mode!r} is not known", hint="one of " + ", ".join(MODES))
    if recipe not in (None, "ibert") or method is not None:
        wrong = f"method {method!r}" if method is not None else f"recipe {recipe!r}"
        raise CheckpointError(
            f"{wrong} does not go with an IBert checkpoint",
            where=str(checkpoint.path),
            hint="leave it out: its ranges were learned for recipe ibert",
        )
    diagnostics.check_config(checkpoint)
    name, pooling = pick_head(checkpoint, head)
    reader = Reader(checkpoint, mode)
    return _finish(reader, reader.encoder(), name, pooling, calibrate)


def _finish(reader: Reader, features: str, head: str, pooling: str, calibrate) -> IntModel:
    """Add the head to the reader's encoder and return the whole model."""
    checkpoint = reader.checkpoint
    files = checkpoint.files()
    meta = _meta(reader, head, pooling)
    if head == "masked-lm":
        meta["mask_token_id"] = mask_token_id(files, meta)
    seen = None
    if calibrate is not None:
        split = calibrated.split(calibrate, files, meta)
        chosen = split.fit
        every = -(-len(chosen) // CALIBRATION_SENTENCES)
        batches = calibration.batches(chosen[::every], meta, meta.get("mask_token_id"))
        seen, meta["calibration"] = _observe(reader, features, head, batches)
        if seen is not None:  # the head's range comes from this text
            reader.warnings += split.warnings(meta, files)
    output = Head(reader, seen).build(head, pooling, features)
    value = reader.values[output]
    meta |= {
        "output_rows": value.rows,
        "output_channels": value.channels,
        "output_scale": value.scale,
        "warnings": [
            *notes(checkpoint, meta["max_length"], reader.first_position),
            *reader.warnings,
        ],
    }
    meta |= labels.answers(checkpoint, head, value.channels)
    return IntModel(reader.nodes, reader.tensors, reader.values, output, meta, files)


def _meta(reader: Reader, head: str, pooling: str) -> dict:
    checkpoint = reader.checkpoint
    limit = len(reader.tensors["embed.position.weight"]) - reader.first_position
    if limit < 1:
        raise CheckpointError(
            f"config key 'pad_token_id' = {reader.pad} leaves no position",
            where=str(checkpoint.path / "config.json"),
        )
    leak, said = LEAK[reader.mode]
    return {
        "family": "ibert",
        "head": head,
        "recipe": "ibert",
        "mode": reader.mode,
        **sentence_transformers.meta(checkpoint, head),
        "vocab_size": len(reader.tensors["embed.word.weight"]),
        "type_vocab_size": len(reader.tensors["embed.type.weight"]),
        "max_length": limit,
        "truncate_length": sentence_transformers.truncate_length(checkpoint, limit),
        "pad_token_id": reader.pad,
        "position_rule": "padding",
        "hidden": reader.hidden,
        "heads": reader.heads,
        "layers": reader.layers,
        "ffn": reader.ffn,
        "activation": "gelu",
        "pooling": pooling,
        "widths": WIDTHS,
        "deviations": {**DEVIATIONS, leak: said},
        "calibration": {},
    }


def _observe(reader: Reader, features: str, head: str, batches: list[dict]):
    """Run the encoder's reference; return (features real [rows, C] or None, what attention kept).

    Warns where a layer's attention rows keep less than half their mass: floor(256 p) drops every
    probability below 1/256.
    """
    encoder = IntModel(reader.nodes, reader.tensors, reader.values, features, {})
    rows, kept = [], {f"layer{i}": [] for i in range(reader.layers)}
    for batch in progress(batches, "running calibration text"):
        values = encoder.run(batch)
        if head == "masked-lm":
            rows.append(values[features])
        for layer, shares in kept.items():
            p = reader.tensors[layer + ".context.p"]
            shares += _kept(values[layer + ".qkv"], batch["cu_seqlens"], p, reader)
    least = {layer: float(min(shares)) for layer, shares in kept.items()}
    for layer, shares in kept.items():
        poor = float(np.mean(np.asarray(shares) < 0.5))
        if poor:
            reader.warnings.append(
                f"{layer}: {poor:.2%} of the calibration rows' attention keeps less than half its "
                f"mass (least {least[layer]:.2f}); floor(256 p) drops what is below 1/256"
            )
    said = {
        "sequences": sum(len(batch["cu_seqlens"]) - 1 for batch in batches),
        "tokens": sum(len(batch["input_ids"]) for batch in batches),
        "least attention mass": {layer: round(share, 3) for layer, share in least.items()},
    }
    seen = np.concatenate(rows) * reader.scale(features) if rows else None
    return seen, said


def _kept(qkv: np.ndarray, cu_seqlens: np.ndarray, p: np.ndarray, reader: Reader) -> list[float]:
    shares = []
    for start, stop in pairwise(cu_seqlens.tolist()):
        for h in range(reader.heads):
            s, _ = scores(qkv, slice(start, stop), h, reader.heads, reader.head_dim)
            exponentials = attention_ibert.numerators(s - s.max(1, keepdims=True), p)
            shares += (attention_ibert.probabilities(exponentials).sum(1) / 256).tolist()
    return shares
