"""Readers: a checkpoint becomes an IntModel."""

from collections.abc import Sequence
from pathlib import Path

from intformer.errors import CheckpointError
from intformer.frontend.architectures import CLASSES as MODEL_TYPES
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.folder import Folder
from intformer.frontend.lora import CONFIG_FILE as ADAPTER_FILE
from intformer.frontend.onnx.checkpoint import OnnxCheckpoint, file_name
from intformer.frontend.weights import has_weights
from intformer.ir.model import IntModel


def import_calibrated(checkpoint: Checkpoint, **options) -> IntModel:
    """Read an FP32 encoder and calibrate it: recipe native."""
    from intformer.frontend.calibrated import import_calibrated as read

    return read(checkpoint, **options)


def import_uncalibrated(checkpoint: Checkpoint, head: str | None = None) -> IntModel:
    """Read an FP32 encoder with arbitrary scales, for what depends on shapes alone."""
    from intformer.frontend.calibrated import import_uncalibrated as read

    return read(checkpoint, head)


def import_ibert(checkpoint: Checkpoint, **options) -> IntModel:
    """Read an I-BERT checkpoint, whose ranges are in it: recipe ibert."""
    from intformer.frontend.ibert import import_ibert as read

    return read(checkpoint, **options)


def import_trained(checkpoint: Checkpoint, **options) -> IntModel:
    """Read a model that was trained for recipe native, with the ranges that training learned."""
    from intformer.frontend.trained import import_trained as read

    return read(checkpoint, **options)


def import_q8bert(checkpoint: Checkpoint, **options) -> IntModel:
    """Read what nlp-architect's Q8BERT saved: recipe native with its thresholds."""
    from intformer.frontend.q8bert import import_q8bert as read

    return read(checkpoint, **options)


Q8BERT_FILE = "quant_pytorch_model.bin"


def import_model(
    source: str | Path,
    *,
    recipe: str | None = None,
    mode: str | None = None,
    head: str | None = None,
    calibrate: str | Path | Sequence | None = None,
    method: str | None = None,
    tokenizer: str | Path | None = None,
) -> IntModel:
    """Read a Hugging Face model directory or an ONNX file into an IntModel.

    source     directory with config.json and weights; or an ONNX file, or a directory with one
    recipe     "native" or "ibert"; None: what the model type defaults to
    mode       "hf_compat" or "fixed", for IBert checkpoints only
    head       name of one of ir.heads.HEADS ("sentence-embedding", ...); None: what the directory
               says
    calibrate  what sets ranges where the directory holds none (I-BERT's and models trained by
               intformer.qat do): text file (a sentence per line, or a TSV with sentence columns);
               or texts, pairs of texts; or arrays of token ids, or tuples (ids, types) of such
               arrays
    method     "ema", "minmax", "percentile" or "mse"; None: the best on held-out calibration text
    tokenizer  a tokenizer.json to use and carry instead of the directory's own
    """
    checkpoint = opened(source, tokenizer=tokenizer)
    options = {"recipe": recipe, "mode": mode, "head": head, "method": method}
    if isinstance(checkpoint, OnnxCheckpoint):
        return import_calibrated(checkpoint, calibrate=calibrate, **options)
    if checkpoint.file(Q8BERT_FILE):
        refuse_adapter(checkpoint)
        return import_q8bert(checkpoint, calibrate=calibrate, **options)
    model_type = checkpoint.setting("model_type", str)
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"config key 'model_type' = {model_type!r} is not supported",
            where=str(checkpoint.path / "config.json"),
            hint="supported: " + ", ".join(MODEL_TYPES),
        )
    from intformer.frontend.trained import is_trained

    if model_type == "ibert" or is_trained(checkpoint):
        refuse_adapter(checkpoint)
    if calibrate is None and is_trained(checkpoint):
        return import_trained(checkpoint, **options)
    read = import_ibert if model_type == "ibert" else import_calibrated
    return read(checkpoint, calibrate=calibrate, **options)


def opened(source: str | Path, *, tokenizer: str | Path | None = None) -> Checkpoint:
    """Return the checkpoint at a path: a directory, or an ONNX file or a directory with one.

    Weights that transformers reads come first.
    """
    path = Path(source)
    if path.suffix == ".onnx" and not path.is_dir():
        return OnnxCheckpoint(path, tokenizer=tokenizer)
    if path.is_dir() and not has_weights(Folder(path)) and file_name(path):
        return OnnxCheckpoint(path, tokenizer=tokenizer)
    return Checkpoint(path, tokenizer=tokenizer)


def refuse_adapter(checkpoint: Checkpoint) -> None:
    """Raise for an adapter beside weights whose ranges were learned without it."""
    if checkpoint.file(ADAPTER_FILE):
        raise CheckpointError(
            "an adapter beside a model that was trained quantized",
            where=str(checkpoint.path / ADAPTER_FILE),
            hint="merge adapters before training with quantization",
        )
