"""CTranslate2: INT8 linears, the rest FP32. Its encoder ends before the classifier of two rows."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from intformer_race.contestants import protocol

spec = protocol.spec
os.environ.setdefault("CT2_FORCE_CPU_ISA", "AVX512")  # it would take AVX2 on a CPU it cannot name
import ctranslate2  # noqa: E402
import numpy as np  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402


def make(path: Path) -> None:
    """Convert; the converter wants a tokenizer, and a config key that transformers 5 dropped."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(spec["source"], folder, dirs_exist_ok=True)
        config = Path(folder, "config.json")
        about = json.loads(config.read_text()) | {"architectures": ["BertModel"]}
        config.write_text(json.dumps(about | {"position_embedding_type": "absolute"}))
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        words += [f"word{i}" for i in range(spec["vocab"] - len(words))]
        Path(folder, "vocab.txt").write_text("\n".join(words))
        transformers.BertTokenizer(f"{folder}/vocab.txt").save_pretrained(folder)
        ctranslate2.converters.TransformersConverter(folder).convert(str(path), quantization="int8")


encoder = ctranslate2.Encoder(
    str(protocol.artifact("ctranslate2", make)),
    device="cpu",
    compute_type=spec["mode"],
    inter_threads=1,
    intra_threads=spec["threads"],
)
batches = [
    tuple(
        ctranslate2.StorageView.from_array(np.ascontiguousarray(array, np.int32))
        for array in (ids, mask.sum(1))
    )
    for ids, mask in protocol.padded()
]
weights = load_file(Path(spec["source"], "model.safetensors"))
classify = weights["classifier.weight"], weights["classifier.bias"]
protocol.serve(
    lambda: [np.array(encoder.forward_batch(*batch).pooler_output) for batch in batches],
    {"version": ctranslate2.__version__, "compute_type": encoder.compute_type},
    lambda results: classify[0] @ results[0][0] + classify[1],
)
