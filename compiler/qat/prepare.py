"""From a float checkpoint to a module that trains quantized."""

from collections.abc import Sequence
from pathlib import Path

from intformer.errors import CheckpointError
from intformer.frontend import calibrated, calibration, opened
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import pick_head, read_encoder
from intformer.frontend.sentence_transformers import refuse_modules
from intformer.frontend.trained import check_ranges, read_ranges, settings
from intformer.ir.graph import Graph
from intformer.ir.heads import Head
from intformer.qat.choices import check_options
from intformer.qat.prepared import (
    Prepared,
    PreparedNative,
    PreparedNativeForQuestionAnswering,
)
from intformer.qat.ranges import Ranges
from intformer.quantize.methods import ema
from intformer.quantize.native.scales import equalisation, neutral
from intformer.quantize.observe import observe


def prepare(
    source: str | Path,
    *,
    recipe: str = "native",
    nonlinear: str | None = None,
    weights: str | None = None,
    calibrate: str | Path | Sequence | None = None,
    head: str | None = None,
) -> Prepared:
    """Return a torch module that trains and evaluates the model in `source` quantized.

    source     Hugging Face directory of a float model, fine-tuned for its task; or one that
               Prepared.save_pretrained wrote, whose ranges it then starts from
    recipe     "native" or "ibert"
    nonlinear  "integer"; or "float": GELU, softmax and LayerNorm stay float, for comparison: such a
               model cannot be lowered. None: the directory's, else "integer"
    weights    "channel": a scale per output channel and word row; "tensor": one per tensor, and no
               channel factors. None: the directory's, else "channel"
    calibrate  text or token ids as import_model takes them: sets the first ranges and the channel
               factors. None: the first batches set the ranges, and all factors are 1
    head       as import_model takes it, but none that fills masks; None: what the directory says

    nonlinear "float" with weights "tensor" is Q8BERT: ranges, too, are one per tensor, the EMA of
    its max|x|. Two things differ from Intel's code: position and type rows stay float, and the EMA
    (decay 0.99, theirs 0.9999) starts from `calibrate` or corrected, theirs from the first batch.
    """
    checkpoint = opened(source)
    checkpoint.refuse_rewritten()
    trained = settings(checkpoint)
    nonlinear = nonlinear or trained.get("nonlinear", "integer")
    weights = weights or trained.get("weights", "channel")
    check_options(recipe, nonlinear, weights)
    answering, _ = pick_head(checkpoint, head)
    refuse_modules(checkpoint, answering, "training: its weights are not the encoder's")
    if answering.outputs == "words":
        raise CheckpointError(
            f"head {answering.name!r} is not trained quantized",
            where=str(checkpoint.path),
            hint="fine-tune it for a task first, or calibrate it",
        )
    if recipe == "ibert":
        return prepare_ibert(checkpoint, answering, calibrate)
    graph, meta = read_encoder(checkpoint, head)
    q8bert = (nonlinear, weights) == ("float", "tensor")
    sizes = graph.ranged()
    tensors = {edge: graph.parts(edge) for edge in sizes} if q8bert else None
    ranges = Ranges(sizes, neutral(graph), tensors=tensors)
    if calibrate is not None:
        start(ranges, graph, checkpoint, meta, calibrate, weights)
    elif trained.get("recipe") == "native":
        seen, factors = check_ranges(graph, read_ranges(checkpoint), str(checkpoint.path))
        ranges.start({tap: one.peaks[0] for tap, one in seen.items()}, factors)
    kind = PreparedNativeForQuestionAnswering if answering.answers_questions else PreparedNative
    model = float_module(checkpoint, answering)
    return kind(checkpoint, model, answering.name, nonlinear, weights, ranges)


def prepare_ibert(checkpoint: Checkpoint, head: Head, calibrate) -> Prepared:
    """Return an IBert module with the weights of the directory."""
    from intformer.qat.prepared_ibert import PreparedIBert, PreparedIBertForQuestionAnswering
    from intformer.qat.prepared_ibert import calibrate as run
    from intformer.qat.to_ibert import ibert_module

    ours = checkpoint.setting("model_type", str) == "ibert"
    model = None if ours else float_module(checkpoint, head)
    kind = PreparedIBertForQuestionAnswering if head.answers_questions else PreparedIBert
    prepared = kind(checkpoint, ibert_module(checkpoint, model, head), head.name)
    if calibrate is not None:
        limit = prepared.meta["position_count"] - 1 - prepared.meta["pad_token_id"]
        meta = {**prepared.meta, "max_length": limit, "truncate_length": limit}
        split = calibrated.split(calibrate, checkpoint.files(), meta)
        run(prepared, calibration.batches(split.fit, meta))
    return prepared


def start(
    ranges: Ranges, graph: Graph, checkpoint: Checkpoint, meta: dict, calibrate, weights
) -> None:
    """Set ranges and factors from calibration data."""
    import torch

    split = calibrated.split(calibrate, checkpoint.files(), meta)
    seen = observe(graph, calibration.batches(split.fit, meta))
    factors = equalisation(graph, seen) if weights == "channel" else {}
    peaks = {tap: ranges.shared(tap, torch.from_numpy(seen[tap].peaks)) for tap in ranges.taps}
    ranges.start({tap: ema(one.numpy()) for tap, one in peaks.items()}, factors)


def float_module(checkpoint: Checkpoint, head: Head):
    """Return transformers' module of the directory, float32."""
    import torch
    import transformers

    auto = getattr(transformers, head.auto_class)
    return auto.from_pretrained(str(checkpoint.path), dtype=torch.float32, local_files_only=True)
