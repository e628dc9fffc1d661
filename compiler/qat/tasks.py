"""Labelled files for training: what they hold, how they become tokens, how outputs are scored.

Tables are those of intformer.measure.accuracy (TSV). JSON lines: for question answering, as in
SQuAD, {"question", "context", "answers": [{"text", "start"}]}; for token classification,
{"words": [...], "labels": [...]}.
"""

import json
import random
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from intformer.errors import IntformerError
from intformer.ir.heads import (
    HEADS,
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Head,
)
from intformer.measure import accuracy
from intformer.qat.metrics import OUTSIDE, answer_scores, word_scores
from intformer.qat.packing import IGNORED
from intformer.runtime.edge import Edge, Packed
from intformer.runtime.texts import text_lines

CLASSIFICATION = "classification"
TOKENS, ANSWERS = TOKEN_CLASSIFICATION.name, QUESTION_ANSWERING.name
NAMES = (*accuracy.TASKS, CLASSIFICATION, TOKENS, ANSWERS)


@dataclass
class Rows:
    """A labelled file.

    task     a name in NAMES
    texts    (text,), (text, pair), (question, context), or the words of a sentence joined
    targets  per row: class (int), score (float), classes of words (list), answers (list of
             (text, start))
    labels   names of the classes; () for scores and answers
    words    per row: (start, end) of every word; for token classification alone
    """

    task: str
    texts: list[tuple[str, ...]]
    targets: list
    labels: tuple[str, ...] = ()
    words: list[list[tuple[int, int]]] = field(default_factory=list)

    @property
    def head(self) -> Head:
        """The head that answers."""
        return HEADS.get(self.task, SEQUENCE_CLASSIFICATION)

    @property
    def regression(self) -> bool:
        """Scores are wanted, not classes."""
        return self.head.classifies_texts and not self.labels

    @property
    def names(self) -> dict[str, dict]:
        """The names of the classes as config.json has them."""
        return {
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: i for i, label in enumerate(self.labels)},
        }

    @property
    def outputs(self) -> int:
        """Channels of the head."""
        return 2 if self.task == ANSWERS else len(self.labels) or 1

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics; the first chooses the model."""
        if self.task == ANSWERS:
            return ("f1", "exact_match")
        if self.task == TOKENS:
            return ("f1", "accuracy")
        if self.task == CLASSIFICATION:
            return ("accuracy",)
        return accuracy.TASKS[self.task].metrics

    def taken(self, chosen: list[int]) -> "Rows":
        """Return some of the rows."""
        return Rows(
            self.task,
            [self.texts[i] for i in chosen],
            [self.targets[i] for i in chosen],
            self.labels,
            [self.words[i] for i in chosen] if self.words else [],
        )

    def split(self, share: float, limit: int | None, seed: int) -> tuple["Rows", "Rows"]:
        """Return (for training, held out): at most `limit` rows by chance, `share` held out.

        Rows over one context go to the same side, so that no held-out document is trained on.
        """
        order = list(range(len(self.texts)))
        random.Random(seed).shuffle(order)
        order = order[:limit]
        wanted = max(1, round(share * len(order)))
        groups: dict[str | int, list[int]] = {}
        for i in order:
            groups.setdefault(self.texts[i][1] if self.task == ANSWERS else i, []).append(i)
        held: set[int] = set()
        for group in groups.values():
            if len(held) >= wanted:
                break
            held.update(group)
        rest = [i for i in order if i not in held]
        if not rest:
            raise IntformerError(
                f"{len(order)} rows leave none to train on", hint="give more rows of train"
            )
        return self.taken(rest), self.taken([i for i in order if i in held])


def read(path: str | Path, task: str, labels: tuple[str, ...] | None = None) -> Rows:
    """Return the rows of a labelled file.

    labels  names of the classes where another file has set them; None: those found here
    """
    if task not in NAMES:
        raise IntformerError(f"task {task!r} is unknown", hint="one of " + ", ".join(NAMES))
    if task == ANSWERS:
        return _read_answers(path)
    if task == TOKENS:
        return _read_words(path, labels)
    if task == CLASSIFICATION:
        return _read_classes(path, labels)
    texts, targets = accuracy.read_rows(path, accuracy.TASKS[task])
    known = accuracy.TASKS[task].classes
    if labels is None and known:
        _found([known[target] for target in targets], path)
    return Rows(task, texts, targets.tolist(), known)


def _lines(path: str | Path) -> list[str]:
    try:
        return text_lines(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise IntformerError(f"cannot read the data: {error}", where=str(path)) from error


def _numbered(names: list[str], known: tuple[str, ...], place: str) -> list[int]:
    for name in names:
        if name not in known:
            raise IntformerError(
                f"label {name!r} is not among {', '.join(map(repr, known))}",
                where=place,
                hint="the labels are those of the training file",
            )
    return [known.index(name) for name in names]


def _read_classes(path: str | Path, labels: tuple[str, ...] | None) -> Rows:
    lines = _lines(path)
    header = lines[0].split("\t") if lines else []
    one, two = ["sentence"], ["sentence1", "sentence2"]
    wanted = two if "sentence1" in header else one
    if missing := [name for name in ["label", *wanted] if name not in header]:
        raise IntformerError(
            f"no column {missing[0]!r}",
            where=str(path),
            hint="expected: label sentence, or label sentence1 sentence2",
        )
    columns = [header.index(name) for name in wanted]
    texts, names = [], []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if len(fields) != len(header) or not fields[header.index("label")].strip():
            raise IntformerError(
                "not a labelled row", where=f"{path}, line {number}", hint="columns need one tab"
            )
        texts.append(tuple(fields[c] for c in columns))
        names.append(fields[header.index("label")].strip())
    if not texts:
        raise IntformerError("no rows", where=str(path))
    known = labels or _found(names, path)
    targets = [
        _numbered([name], known, f"{path}, line {number}")[0]
        for number, name in enumerate(names, start=2)
    ]
    return Rows(CLASSIFICATION, texts, targets, known)


def _found(names: list[str], path: str | Path) -> tuple[str, ...]:
    known = tuple(sorted(set(names)))
    if len(known) < 2:
        raise IntformerError(f"every label is {known[0]!r}", where=str(path))
    return known


def _json_rows(path: str | Path, keys: tuple[str, ...], take: Callable) -> list:
    """Return take(object) of every line; a line it cannot take is named."""
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            rows.append(take(json.loads(line)))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise IntformerError(
                f"not a labelled row: {error or type(error).__name__}",
                where=f"{path}, line {number}",
                hint="JSON lines with " + ", ".join(keys),
            ) from error
    if not rows:
        raise IntformerError("no rows", where=str(path))
    return rows


def _read_words(path: str | Path, labels: tuple[str, ...] | None) -> Rows:
    def take(row: dict) -> tuple[list[str], list[str]]:
        words, names = [str(word) for word in row["words"]], [str(name) for name in row["labels"]]
        if len(words) != len(names) or not words or not all(words):
            raise ValueError(f"{len(words)} words and {len(names)} labels")
        return words, names

    rows = _json_rows(path, ("words", "labels"), take)
    known = labels or _found([name for _, names in rows for name in names], path)
    made = Rows(TOKENS, [], [], known)
    for number, (words, names) in enumerate(rows, start=1):
        starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])]).tolist()
        made.texts.append((" ".join(words),))
        made.words.append([(s, s + len(w)) for s, w in zip(starts, words, strict=True)])
        made.targets.append(_numbered(names, known, f"{path}, row {number}"))
    return made


def _read_answers(path: str | Path) -> Rows:
    def take(row: dict) -> tuple[tuple[str, str], list[tuple[str, int]]]:
        context = row["context"]
        answers = [(answer["text"], int(answer["start"])) for answer in row["answers"]]
        for text, start in answers:
            if context[start : start + len(text)] != text:
                raise ValueError(f"answer {text!r} is not at {start}")
        if not answers:
            raise ValueError("no answers")
        return (row["question"], context), answers

    rows = _json_rows(path, ("question", "context", "answers"), take)
    return Rows(ANSWERS, [texts for texts, _ in rows], [answers for _, answers in rows])


class Encoded:
    """Rows as tokens, cut as the compiled library's own edge cuts them.

    rows      what was encoded
    packed    the tokens (edge.Packed); a long context is several sequences
    features  per sequence: {"input_ids", "token_type_ids", and what it is trained on}
    """

    def __init__(self, rows: Rows, config, tokenizer_files: dict[str, bytes], length: int):
        """Tokenize. config: of transformers; length: tokens in a sequence at most."""
        self.rows = rows
        self.pad = getattr(config, "pad_token_id", None) or 0
        self.edge = Edge(
            {
                "head": rows.head.name,
                "labels": list(rows.labels),
                "truncate_length": length,
                "type_vocab_size": getattr(config, "type_vocab_size", None) or 1,
                "position_rule": "column",
                "pad_token_id": self.pad,
                "output_scale": 1.0,
            },
            tokenizer_files,
        )
        columns = [list(column) for column in zip(*rows.texts, strict=True)]
        self.packed: Packed = self.edge.encode(*columns)
        cuts = self.packed.cu_seqlens[1:-1]
        self.features = [
            {"input_ids": ids, "token_type_ids": types, **self._wanted(number)}
            for number, (ids, types) in enumerate(
                zip(
                    np.split(self.packed.input_ids, cuts),
                    np.split(self.packed.token_type_ids, cuts),
                    strict=True,
                )
            )
        ]

    def _wanted(self, number: int) -> dict:
        """Return what sequence `number` is trained on, under the names transformers has."""
        row = self.packed.text_of[number]
        target = self.rows.targets[row]
        if self.rows.task == ANSWERS:
            start, end = self._answer_tokens(number, *target[0])
            return {"start_positions": start, "end_positions": end}
        if self.rows.task == TOKENS:
            labels = np.full(len(self.packed.encodings[number].ids), IGNORED)
            for at, word in self._words(number):
                labels[at] = target[word]
            return {"labels": labels}
        return {"labels": target}

    def _words(self, number: int) -> list[tuple[int, int]]:
        """Return (token, word) for the first token of every word that is in the sequence.

        A token may begin in the space before its word. A word of nothing but characters that the
        tokenizer drops has no token.
        """
        encoding, row = self.packed.encodings[number], self.packed.text_of[number]
        words = self.rows.words[row]
        starts = [start for start, _ in words]
        spans = [
            (at, *span)
            for at, (span, special) in enumerate(
                zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
            )
            if not special
        ]
        found: dict[int, int] = {}
        for at, start, end in spans:
            word = bisect_left(starts, start)
            if word < len(words) and starts[word] < end:
                found.setdefault(word, at)
        for word, (first, last) in enumerate(words):
            if word not in found and any(start < last and end > first for _, start, end in spans):
                text = self.rows.texts[row][0]
                raise IntformerError(
                    f"no token begins with word {text[first:last]!r} of {text[:80]!r}",
                    where="tokenizer.json",
                    hint="words need a tokenizer whose tokens end at spaces",
                )
        return [(at, word) for word, at in found.items()]

    def _answer_tokens(self, number: int, text: str, start: int) -> tuple[int, int]:
        """Return first and last token of an answer; (0, 0) where the window lacks a part of it."""
        encoding, end = self.packed.encodings[number], start + len(text)
        inside = [
            at
            for at, (place, sequence) in enumerate(
                zip(encoding.offsets, encoding.sequence_ids, strict=True)
            )
            if sequence == 1 and place[0] < end and place[1] > start
        ]
        whole = (
            inside
            and encoding.offsets[inside[0]][0] <= start
            and encoding.offsets[inside[-1]][1] >= end
        )
        return (inside[0], inside[-1]) if whole else (0, 0)

    def score(self, output: np.ndarray) -> tuple[dict[str, float], list]:
        """Return every metric, and what was predicted per row.

        output  float [rows, channels] as a library gives them: a row per sequence, or per token
                for token classification and question answering
        """
        if self.rows.task == ANSWERS:
            answers = [one["answer"] for one in self.edge.decode(self.packed, output)]
            wanted = [[text for text, _ in target] for target in self.rows.targets]
            return answer_scores(answers, wanted), answers
        if self.rows.task == TOKENS:
            return self._score_words(output.argmax(1))
        predicted = output[:, 0] if self.rows.regression else output.argmax(1)
        judged = predicted, np.array(self.rows.targets)
        if self.rows.task in accuracy.TASKS and self.rows.labels:  # F1 is that of the task's 1
            task = accuracy.TASKS[self.rows.task]
            judged = [accuracy.classes(task, self.rows.labels, each) for each in judged]
        found = {name: accuracy.METRICS[name](*judged) for name in self.rows.metrics}
        return found, predicted.tolist()

    def _score_words(self, predicted: np.ndarray) -> tuple[dict[str, float], list]:
        """Score first tokens of words; a word that was cut off has no prediction, and is wrong."""
        answers = [[-1] * len(target) for target in self.rows.targets]
        for number, first in enumerate(self.packed.cu_seqlens[:-1]):
            for at, word in self._words(number):
                answers[self.packed.text_of[number]][word] = int(predicted[first + at])
        labels = self.rows.labels
        outside = labels.index(OUTSIDE) if OUTSIDE in labels else None
        flat = [
            np.array([one for row in rows for one in row]) for rows in (answers, self.rows.targets)
        ]
        return word_scores(*flat, outside), answers
