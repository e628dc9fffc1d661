"""Small data for heads that no GLUE task has: enough to show that they train, and no benchmark.

Question answering: DATA/squad_xquad_en/dev.jsonl, the questions over three quarters of its
contexts to train on, the rest to score. Token classification: first sentences of MRPC; a word is
NAME where it starts with a capital letter and is not the first, which an uncased model cannot see.
"""

import json
from pathlib import Path

from intformer.errors import IntformerError
from intformer.measure import accuracy
from intformer.qat import tasks

SENTENCES = 1000


def files(task: str, data: Path, out: Path) -> tuple[Path, Path]:
    """Return (train, dev), made in `out` where they are missing."""
    made = tuple(out / f"{task}-{part}.jsonl" for part in ("train", "dev"))
    if not all(path.is_file() for path in made):
        out.mkdir(parents=True, exist_ok=True)
        parts = answers(data) if task == tasks.ANSWERS else words(data)
        for path, lines in zip(made, parts, strict=True):
            part = path.with_suffix(".part")
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            part.replace(path)
    return made


def answers(data: Path) -> tuple[list[str], list[str]]:
    """Return the lines over the first three quarters of the contexts, and the others."""
    path = data / "squad_xquad_en" / "dev.jsonl"
    if not path.is_file():
        raise IntformerError("no such data file", where=str(path), hint="see make qat-results")
    lines = path.read_text(encoding="utf-8").splitlines()
    contexts = list(dict.fromkeys(json.loads(line)["context"] for line in lines))
    first = set(contexts[: 3 * len(contexts) // 4])
    parts: tuple[list[str], list[str]] = ([], [])
    for line in lines:
        parts[json.loads(line)["context"] not in first].append(line)
    return parts


def words(data: Path) -> tuple[list[str], list[str]]:
    """Return labelled words of MRPC's train and dev part."""
    return tuple(
        [labelled(first) for first, _ in accuracy.read_rows(path, accuracy.TASKS["mrpc"])[0]][
            :SENTENCES
        ]
        for path in (data / "mrpc" / "train.tsv", data / "mrpc" / "dev.tsv")
    )


def labelled(sentence: str) -> str:
    """Return a sentence's words and labels as a line of JSON."""
    found = sentence.split()
    names = ["NAME" if i and word[0].isupper() else "O" for i, word in enumerate(found)]
    return json.dumps({"words": found, "labels": names})
