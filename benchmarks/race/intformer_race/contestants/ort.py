"""ONNX Runtime: FP32 with its BERT fusions, and static INT8 (QDQ; u8 activations, s8 weights)."""

from pathlib import Path

import onnxruntime
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from intformer_race.contestants import protocol

spec = protocol.spec
CALIBRATION = 8  # sequences of 128 tokens


def fused(attention: bool) -> Path:
    """Return the graph after the fusions.

    The quantizer knows no Attention operator: without that fusion the products inside attention
    stay apart, and are quantized too.
    """
    source = protocol.onnx_model()

    def make(path: Path) -> None:
        from onnxruntime.transformers import optimizer
        from onnxruntime.transformers.fusion_options import FusionOptions

        options = FusionOptions("bert")
        options.enable_attention = attention
        graph = optimizer.optimize_model(
            str(source),
            model_type="bert",
            num_heads=spec["heads"],
            hidden_size=spec["hidden"],
            opt_level=0,
            optimization_options=options,
        )
        raw = path.with_suffix(".raw")
        graph.save_model_to_file(str(raw))
        # the quantizer wants shapes, also of the fused operators
        quant_pre_process(str(raw), str(path), skip_optimization=True, auto_merge=True)
        raw.unlink()

    return protocol.artifact(f"ort-{'attention' if attention else 'products'}.onnx", make)


class Calibration(quantization.CalibrationDataReader):
    """Random sequences, one at a time."""

    def __init__(self):
        self.batches = iter(protocol.random_batches(CALIBRATION))

    def get_next(self) -> dict | None:
        """Return the next one's inputs; None at the end."""
        batch = next(self.batches, None)
        return None if batch is None else protocol.named(batch)


def static_int8() -> Path:
    """Return the quantized graph."""
    source = fused(attention=False)

    def make(path: Path) -> None:
        quantization.quantize_static(
            str(source),
            str(path),
            Calibration(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm"],
        )

    return protocol.artifact("ort-int8.onnx", make)


graph = static_int8() if spec["mode"] == "int8" else fused(attention=True)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = spec["threads"]
options.inter_op_num_threads = 1
batches = protocol.padded()
if len(batches) == 1:
    for name, size in zip(("batch", "seq"), batches[0][0].shape, strict=True):
        options.add_free_dimension_override_by_name(name, size)
session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
feeds = [protocol.named(batch) for batch in batches]
protocol.serve(
    lambda: [session.run(None, feed) for feed in feeds],
    {"version": onnxruntime.__version__},
    lambda results: results[0][0][0],
)
