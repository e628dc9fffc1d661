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

from pathlib import Path

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend import calibrated, calibration, sentence_transformers
from intformer.frontend.calibrated import mask_token_id
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.frontend.ibert_config import check_config
from intformer.ir.float_run import arithmetic
from intformer.ir.model import IntModel
from intformer.progress import progress
from intformer.quantize.ibert.attention_mass import AttentionMass
from intformer.quantize.ibert.head import head_graph, lower_head
from intformer.quantize.ibert.rules import Rules
from intformer.quantize.ibert.scales import Recorded

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
    calibrate  text or token ids as import_model takes them; sets the ranges of the head's own edges
               and checks how much of its mass attention keeps. Encoder ranges come from the
               checkpoint.
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
    check_config(checkpoint)
    graph, meta = read_encoder(checkpoint, head)
    sentence_transformers.refuse_modules(checkpoint, graph.head, "recipe ibert")
    if graph.of_kind("concat") or any("form" in node.attrs for node in graph.of_kind("mean")):
        raise CheckpointError(
            f"pooling {meta['pooling']!r} does not go with recipe ibert",
            where=str(checkpoint.root),
            hint="one of mean, max, cls, lasttoken goes",
        )
    rules = Rules(graph, Recorded(checkpoint.tensor, str(checkpoint.path)), mode == MODES[0])
    return _finish(checkpoint, rules, rules.encoder(), meta | _about(mode), calibrate)


def _about(mode: str) -> dict:
    leak, said = LEAK[mode]
    return {
        "recipe": "ibert",
        "mode": mode,
        "widths": WIDTHS,
        "deviations": {**DEVIATIONS, leak: said},
        "calibration": {},
    }


def _finish(checkpoint: Checkpoint, rules: Rules, features: str, meta: dict, calibrate) -> IntModel:
    """Add the head to the encoder and return the whole model."""
    files = checkpoint.files()
    if rules.graph.head.fills_masks:
        meta["mask_token_id"] = mask_token_id(files, meta)
    batches, shown = [], []
    if calibrate is not None:
        split = calibrated.split(calibrate, files, meta)
        every = -(-len(split.fit) // CALIBRATION_SENTENCES)
        batches = calibration.batches(split.fit[::every], meta, meta.get("mask_token_id"))
        shown, meta["calibration"] = _observe(rules, features, batches)
        if head_graph(rules.graph, features).ranged():  # this text sets them
            rules.warnings += split.warnings(meta, files)
    output = lower_head(rules, features, batches, shown)
    value = rules.values[output]
    meta |= {
        "output_rows": value.rows,
        "output_channels": value.channels,
        "output_scale": value.scale,
        "warnings": [*meta["warnings"], *rules.warnings],
    }
    return IntModel(rules.nodes, rules.tensors, rules.values, output, meta, files, rules.edges)


def _observe(rules: Rules, features: str, batches: list[dict]):
    """Run the encoder's reference over calibration text.

    Returns (features float32 [tokens, channels] of each batch, what to report). Warns where a
    layer's attention rows keep less than half their mass.
    """
    last = rules.held[features]
    encoder = IntModel(rules.nodes, rules.tensors, rules.values, last, {})
    shown, mass = [], AttentionMass(rules.graph, rules.tensors)
    for batch in progress(batches, "running calibration text"):
        values = encoder.run(batch)
        shown.append((values[last] * rules.scale(last)).astype(np.float32))
        mass.see(values, batch["cu_seqlens"])
    rules.warnings += mass.warnings()
    said = {
        "sequences": sum(len(batch["cu_seqlens"]) - 1 for batch in batches),
        "tokens": sum(len(batch["input_ids"]) for batch in batches),
        "computed_by": arithmetic(),
        "least attention mass": {layer: round(share, 3) for layer, share in mass.least().items()},
    }
    return shown, said
