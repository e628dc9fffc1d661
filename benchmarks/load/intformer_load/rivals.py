"""Other runtimes in a library's place: the backends of sentence-transformers, with INT8 weights.

`onnx` is ONNX Runtime with dynamic INT8, `openvino` a model that NNCF quantized: the files that
sentence-transformers' exporters make. They are run here without it, from the same packed tokens.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from intformer.runtime.file import LibraryFile

RUNTIMES = ("onnx", "openvino")
INPUTS = ("input_ids", "attention_mask")
CALIBRATION = 32  # texts
Infer = Callable[[np.ndarray, np.ndarray], np.ndarray]  # ids, mask -> float32 [batch, seq, n]


class Rival:
    """A runtime with the metadata and the tokenizer of a library."""

    def __init__(self, library: Path, infer: Infer):
        """Read what the server asks of a library."""
        file = LibraryFile(library)
        self.metadata = {**file.metadata, "output_scale": 1.0}
        self.files, self.footer, self.path, self.infer = file.files, file.footer, library, infer

    def run(self, input_ids: np.ndarray, cu_seqlens: np.ndarray, **_) -> np.ndarray:
        """Return the means of rows, float32 [sequences, channels], of one padded batch."""
        lengths = np.diff(cu_seqlens)
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = input_ids
        rows = self.infer(ids, mask.astype(np.int64))
        return (rows * mask[..., None]).sum(1) / lengths[:, None]


def runtime(name: str, model: Path, threads: int) -> Infer:
    """Return what runs a model of RUNTIMES."""
    return {"onnx": _onnx, "openvino": _openvino}[name](model, threads)


def _onnx(model: Path, threads: int) -> Infer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def _openvino(model: Path, threads: int) -> Infer:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    return lambda ids, mask: request.infer({"input_ids": ids, "attention_mask": mask})[0]


def made(name: str, source: Path, folder: Path, batches: list[tuple]) -> Path:
    """Return the quantized model of a directory, made where it is not there yet.

    batches  (ids, mask) of texts, for what is calibrated
    """
    path = folder / {"onnx": "int8.onnx", "openvino": "int8.xml"}[name]
    if not path.exists():
        float_model = folder / "fp32.onnx"
        if not float_model.exists():
            export(source, float_model)
        if name == "onnx":
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(float_model, path, weight_type=QuantType.QInt8)
        else:
            _quantize_static(float_model, path, batches)
    return path


def export(source: Path, path: Path, names: Sequence[str] = INPUTS, **options) -> None:
    """Write the FP32 graph of a model directory with some inputs, and its rows as the one output.

    options  of torch.onnx.export
    """
    import torch
    from transformers import AutoModel

    class Rows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = AutoModel.from_pretrained(source, attn_implementation="eager").eval()

        def forward(self, *inputs):
            return self.model(**dict(zip(names, inputs, strict=True)))[0]

    torch.onnx.export(
        Rows().eval(),
        (torch.ones((2, 8), dtype=torch.int64),) * len(names),
        str(path),
        input_names=list(names),
        output_names=["rows"],
        dynamic_axes={key: {0: "batch", 1: "tokens"} for key in (*names, "rows")},
        dynamo=False,
        **options,
    )


def _quantize_static(float_model: Path, path: Path, batches: list[tuple]) -> None:
    import nncf
    import openvino

    data = [dict(zip(INPUTS, one, strict=True)) for one in batches]
    model = nncf.quantize(
        openvino.Core().read_model(float_model),
        nncf.Dataset(data),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(data),
    )
    openvino.save_model(model, path, compress_to_fp16=False)
