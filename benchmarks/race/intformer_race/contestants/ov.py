"""OpenVINO: FP32, BF16, INT8 by NNCF, and INT8 with BF16 for the rest."""

from pathlib import Path

import openvino
from openvino.properties import hint

from intformer_race.contestants import protocol

spec = protocol.spec
CALIBRATION = 16  # sequences of 128 tokens
EXACT = 8  # shapes that get a model of their own; that many copies of the weights must fit
FLOATS = {"f32": openvino.Type.f32, "bf16": openvino.Type.bf16}


def fp32() -> Path:
    """Return the folder of the FP32 model: its own format is mapped, so that copies share it."""
    source = protocol.onnx_model()

    def make(path: Path) -> None:
        path.mkdir()
        model = openvino.Core().read_model(source)
        openvino.save_model(model, path / "model.xml", compress_to_fp16=False)

    return protocol.artifact("openvino-fp32", make)


def int8() -> Path:
    """Return the folder of the quantized model."""
    source = protocol.onnx_model()

    def make(path: Path) -> None:
        import nncf

        data = [protocol.named(batch) for batch in protocol.random_batches(CALIBRATION)]
        model = nncf.quantize(
            openvino.Core().read_model(source),
            nncf.Dataset(data),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(data),
        )
        path.mkdir()
        openvino.save_model(model, path / "model.xml", compress_to_fp16=False)

    return protocol.artifact("openvino-int8", make)


*quantized, floats = spec["mode"].split("-")
source = (int8() if quantized else fp32()) / "model.xml"
core = openvino.Core()
settings = {
    hint.performance_mode: hint.PerformanceMode.LATENCY,
    hint.inference_precision: FLOATS[floats],
    "INFERENCE_NUM_THREADS": spec["threads"],
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,
}
batches = protocol.padded()
exact = len({ids.shape for ids, _ in batches}) <= EXACT
requests: dict[tuple, openvino.InferRequest] = {}
feeds = []
for batch in batches:
    shape = batch[0].shape if exact else ()  # a model with symbolic shapes is a little slower
    if shape not in requests:
        model = core.read_model(source)
        if exact:
            model.reshape({one.get_any_name(): list(shape) for one in model.inputs})
        requests[shape] = core.compile_model(model, "CPU", settings).create_infer_request()
    feeds.append((requests[shape], protocol.named(batch)))
protocol.serve(
    lambda: [request.infer(feed, share_inputs=True) for request, feed in feeds],
    {"version": openvino.__version__, "models": len(requests)},
    lambda results: results[0][0][0],
)
