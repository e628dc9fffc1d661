"""An ONNX Runtime session and `tokenizers`, joined as fastembed does: dynamic INT8 weights."""

from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from intformer_load.rivals import INPUTS, export
from intformer_race.contestants import protocol
from intformer_text.contestants.turns import LONGEST, spec, take

BATCH = 256  # texts, fastembed's default
NAMES = (*INPUTS, "token_type_ids")


def exported() -> Path:
    """Return the FP32 graph with the fusions that ONNX Runtime knows for BERT."""

    def make(path: Path) -> None:
        from onnxruntime.transformers import optimizer
        from transformers import AutoConfig

        about = AutoConfig.from_pretrained(spec["source"])
        plain = path.with_suffix(".plain")
        export(spec["source"], plain, NAMES, opset_version=17)
        heads, hidden = about.num_attention_heads, about.hidden_size
        fused = optimizer.optimize_model(str(plain), "bert", num_heads=heads, hidden_size=hidden)
        fused.save_model_to_file(str(path))
        plain.unlink()

    return protocol.artifact("session-fp32.onnx", make)


def quantized() -> Path:
    """Return it with INT8 weights and dynamic activations."""
    source = exported()

    def make(path: Path) -> None:
        from onnx import TensorProto
        from onnxruntime.quantization import QuantType, quantize_dynamic

        kinds = {"DefaultTensorType": TensorProto.FLOAT}  # behind a fused node it infers none
        quantize_dynamic(
            source, path, weight_type=QuantType.QInt8, per_channel=True, extra_options=kinds
        )

    return protocol.artifact("session-int8.onnx", make)


def embed(texts: list[str]) -> np.ndarray:
    """Return the normalized means of rows, float32 [texts, channels]."""
    found = []
    for start in range(0, len(texts), BATCH):
        encodings = tokenizer.encode_batch(texts[start : start + BATCH])
        ids = np.array([e.ids for e in encodings], np.int64)
        mask = np.array([e.attention_mask for e in encodings], np.int64)
        inputs = dict(zip(NAMES, (ids, mask, np.zeros_like(ids)), strict=True))
        (rows,) = session.run(None, inputs)
        means = (rows * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        found.append(means / np.linalg.norm(means, axis=1, keepdims=True))
    return np.concatenate(found)


tokenizer = Tokenizer.from_file(str(Path(spec["source"], "tokenizer.json")))
tokenizer.enable_truncation(LONGEST)
tokenizer.enable_padding()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = spec["threads"]
session = onnxruntime.InferenceSession(quantized(), options, ["CPUExecutionProvider"])
take(embed, onnxruntime.__version__)
