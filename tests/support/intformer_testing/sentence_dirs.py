"""Directories as sentence-transformers writes them, and what answers in a library's place."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from intformer.frontend import import_model
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.ir.float_run import run
from intformer.runtime.edge import predict
from intformer_testing import random_hf, small_tokenizer

TOKENS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
}


def plain(folder: Path, head: str = "features", *, cased: bool = False, **shape) -> Path:
    """Write a random BERT and a word tokenizer, as transformers does."""
    folder.mkdir(parents=True, exist_ok=True)
    random_hf.save(folder, "bert", head, **shape)
    small_tokenizer.save(folder)
    if cased:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.normalizer = None
        tokenizer.save(str(folder / "tokenizer.json"))
    write(folder / "tokenizer_config.json", TOKENS)
    return folder


def write(file: Path, value: object) -> None:
    """Write JSON, with the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def change(file: Path, **keys) -> None:
    """Set keys of a JSON object."""
    write(file, {**json.loads(file.read_text()), **keys})


def old_modules(folder: Path, *kinds: str) -> None:
    """Write modules.json as before version 6; Pooling has no settings yet."""
    paths = ("" if kind == "Transformer" else f"{i}_{kind}" for i, kind in enumerate(kinds))
    write(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ],
    )


class Answering:
    """Stands for a library: metadata, files and run()."""

    runs_alone = False

    def answers(self, texts, pairs=None, **options) -> list:
        """Answer as a library does."""
        return list(predict(self, texts, pairs, **options))


class Quantized(Answering):
    """The integers of the library, computed by the NumPy reference."""

    def __init__(self, folder: Path, head: str | None = None, calibrate=None):
        """Import a directory, calibrated on our sentences where nothing else is given."""
        calibrate = calibrate or small_tokenizer.SENTENCES[:48]
        self.model = import_model(folder, head=head, calibrate=calibrate, method="minmax")
        self.metadata = self.model.meta

    def files(self):
        return self.model.files

    def run(self, **inputs):
        return self.model.run(inputs)[self.model.output]


class Exact(Answering):
    """The float model behind the library's edge: no quantization between a text and its answer."""

    STEP = 1e-6

    def __init__(self, folder: Path, head: str | None = None, tokenizer: Path | None = None):
        """Read a directory."""
        self.checkpoint = Checkpoint(folder, tokenizer=tokenizer)
        self.graph, meta = read_encoder(self.checkpoint, head)
        self.metadata = {**meta, "output_scale": self.STEP}

    def files(self):
        return self.checkpoint.files()

    def run(self, **inputs):
        return np.round(run(self.graph, inputs) / self.STEP).astype(np.int64)
