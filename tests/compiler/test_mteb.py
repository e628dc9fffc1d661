"""A task of MTEB, made of a local file by MTEB's own classes, runs on a library."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

import intformer
from intformer.integrations import sentence_transformer
from intformer_testing import small_tokenizer
from intformer_testing.sentence_dirs import plain

mteb = pytest.importorskip("mteb", reason="needs mteb: `make test-engines DATA=DIR`")
FILE = Path(os.environ.get("DATA") or "/nonexistent", "stsb", "dev.tsv")
NAME = "LocalSTSB"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FILE.exists(), reason="needs DATA, a folder with stsb/dev.tsv"),
]


@pytest.fixture(scope="module")
def rows():
    with FILE.open(encoding="utf-8", newline="\n") as file:
        found = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(found) > 500
    return {
        "sentence1": [row["sentence1"] for row in found],
        "sentence2": [row["sentence2"] for row in found],
        "score": [float(row["label"]) for row in found],
    }


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    made = tmp_path_factory.mktemp("embedder")
    folder = plain(made / "model", hidden=32, heads=2, layers=1, ffn=48)
    path, calibration = made / "model.so", made / "texts.txt"
    calibration.write_text("\n".join(small_tokenizer.SENTENCES[:48]))
    options = {"head": "sentence-embedding", "target": "x86-64", "calibrate": calibration}
    intformer.compile(folder, path, **options)
    return path


def task(rows):
    """The task, with its data set in memory."""
    from datasets import Dataset, DatasetDict
    from mteb.abstasks import AbsTaskSTS

    class LocalSTSB(AbsTaskSTS):
        metadata = mteb.TaskMetadata(
            name=NAME,
            description="STS-B, dev, from a file",
            reference=None,
            dataset={"path": "local", "revision": "local"},
            type="STS",
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
        )

        def load_data(self, **_):
            self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
            self.data_loaded = True

    return LocalSTSB()


def test_sts(library, rows):
    """The score is the one that the library's own vectors have."""
    model = sentence_transformer(library)
    result = mteb.evaluate(model, task(rows), cache=None, show_progress_bar=False)
    (found,) = result.task_results
    one, other = (
        np.stack(list(intformer.predict(intformer.load(library), rows[name])))
        for name in ("sentence1", "sentence2")
    )
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines = (one * other).sum(1) / lengths
    wanted = np.corrcoef(cosines, rows["score"])[0, 1]  # ranks would hang on the last bit of ties
    assert found.task_name == NAME
    assert found.scores["test"][0]["cosine_pearson"] == pytest.approx(wanted, rel=1e-5)
