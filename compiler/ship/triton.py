"""A library becomes a model repository of NVIDIA's Triton Inference Server."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from intformer import scratch
from intformer.errors import IntformerError
from intformer.ir.heads import NEVER, head_of
from intformer.runtime.file import LibraryFile

INPUT = """\
  {{ name: "{name}" data_type: {kind} dims: [ {dims} ] optional: true allow_ragged_batch: true }}"""
CONFIG = """\
# Written by `intformer triton`. Either text (and pair), or input_ids (and its masks).
name: "{name}"
backend: "python"
max_batch_size: {max_batch_size}
input [
{inputs}
]
output [
  {{ name: "{output}" data_type: TYPE_FP32 dims: [ {channels} ]{labels} }}
]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""
MODEL = '''\
"""Written by `intformer triton`; Python needs numpy, tokenizers and intformer."""

from intformer.integrations.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class Repository:
    """What `triton_repository` wrote.

    model    the name that requests use
    version  the number of its version
    folder   of the model
    """

    model: str
    version: int
    folder: Path


def triton_repository(
    library: str | os.PathLike,
    output: str | os.PathLike,
    *,
    name: str | None = None,
    max_batch_size: int = 32,
    queue_delay: int = 0,
) -> Repository:
    """Add a library to a model repository of Triton, as the next version of its model.

    library         compiled library that embeds or classifies texts, with its tokenizer
    output          folder of the repository, made where it is missing
    name            of the model; default: from the file name
    max_batch_size  sequences that run together
    queue_delay     microseconds that a request may wait for others
    """
    file = LibraryFile(library)
    model = file.path.stem if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", model):
        raise IntformerError(f"a model cannot be called {model!r}", hint="pass --name")
    head = head_of(file.metadata)
    if not (head.embeds or head.classifies_texts):
        raise IntformerError(
            f"head {head.name} has no row of numbers per text",
            where=str(file.path),
            hint="heads sentence-embedding and sequence-classification have",
        )
    folder = Path(output, model)
    folder.mkdir(parents=True, exist_ok=True)
    versions = [int(one.name) for one in folder.iterdir() if one.name.isdecimal()]
    version = max(versions, default=0) + 1
    with scratch.folder(folder, str(version)) as made:  # Triton sees a version once it is complete
        made.chmod(0o755)
        shutil.copyfile(file.path, made / "library.so")
        (made / "model.py").write_text(MODEL)
        if not head.embeds:
            labels = "".join(f"{label}\n" for label in file.metadata["labels"])
            (folder / "labels.txt").write_text(labels)
        config = _config(file, model, max_batch_size, queue_delay)
        (made / "config.pbtxt").write_text(config)
        (made / "config.pbtxt").replace(folder / "config.pbtxt")
        made.rename(folder / str(version))
    return Repository(model, version, folder)


def _config(file: LibraryFile, model: str, max_batch_size: int, delay: int) -> str:
    head = head_of(file.metadata)
    channels = file.metadata["output_channels"]
    names = {"text": ("TYPE_STRING", 1)}
    if head.pairs != NEVER:
        names["pair"] = ("TYPE_STRING", 1)
    names |= dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ("TYPE_INT32", -1))
    inputs = [INPUT.format(name=n, kind=kind, dims=dims) for n, (kind, dims) in names.items()]
    return CONFIG.format(
        name=model,
        max_batch_size=max_batch_size,
        delay=delay,
        inputs=",\n".join(inputs),
        output="embedding" if head.embeds else "scores",
        channels=min(channels, file.metadata.get("truncate_dim") or channels),
        labels="" if head.embeds else ' label_filename: "labels.txt"',
    )
