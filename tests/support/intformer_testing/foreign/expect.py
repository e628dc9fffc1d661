"""Decorators that say what must happen with the directory that a test writes.

A case of the suite is a test function that takes `folder`, an empty directory (a fixture), and
writes into it:

    @equal_to(Transformers)
    def test_half_precision(folder):
        save(folder, "bert").half().save_pretrained(folder)

    @refused("modules.json", "Dense")
    def test_dense(folder):
        ...

equal_to(library)  what is imported has the ids, token types, values and answers of that library
refused(*parts)    import_model raises one line that holds each of the parts
"""

import functools
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from intformer.edge import Edge
from intformer.errors import IntformerError
from intformer.frontend import import_model
from intformer_testing.foreign.directories import LENGTH
from intformer_testing.small_tokenizer import SENTENCES

CALIBRATION = [*SENTENCES[:40], *zip(SENTENCES[40:64], SENTENCES[64:88], strict=True)]
LONG = " ".join(SENTENCES[100:125])  # several times LENGTH tokens
SINGLES = [(text,) for text in (*SENTENCES[90:98], "The Café, İstanbul & 東京!", "no", LONG)]
PAIRS = [
    *zip(SENTENCES[120:126], SENTENCES[130:136], strict=True),
    ("no", LONG),
    (LONG, SENTENCES[4]),
]
SECONDS = 60  # a directory that takes longer to read hangs

# Error of the integers as a share of the spread over the texts (rms of both). Rounding alone gives
# 0.02 to 0.15 in models this small; a dropped adapter, other types or another pooling 0.5 and more.
SHARE = 0.2
COSINE = 0.99  # of vectors: embeddings, features
NORM = 0.02  # relative error of the length of an embedding
SCORE = 0.06  # absolute error of a probability


def equal_to(library, **options):
    """Expect a directory to be what `library` says it is.

    library  class of `libraries`
    options  of import_model: head
    """

    def decorate(case):
        @functools.wraps(case)
        def test(folder, **arguments):
            made = case(folder, **arguments)
            with limited():
                reference = library(folder, made)
                compare(Imported(folder, **options), reference)

        return test

    return decorate


def refused(*parts: str, **options):
    """Expect import_model to raise one line with all `parts`."""

    def decorate(case):
        @functools.wraps(case)
        def test(folder, **arguments):
            case(folder, **arguments)
            refuses(folder, *parts, **options)

        return test

    return decorate


def refuses(folder: Path, *parts: str, **options) -> None:
    """Assert that import_model raises one line with all `parts`."""
    with limited(), pytest.raises(IntformerError) as raised:
        import_model(folder, calibrate=CALIBRATION, **{"method": "minmax", **options})
    line = str(raised.value).replace(str(folder), "model")  # pytest names it like the test
    assert "\n" not in line
    assert not [part for part in parts if part not in line], line


@contextmanager
def limited():
    """Fail what takes longer than SECONDS, also inside a system call."""

    def stop(*_):
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Imported:
    """A directory as intformer takes it, computed by the NumPy reference."""

    def __init__(self, folder: Path, **options):
        """Import and calibrate."""
        self.program = import_model(folder, calibrate=CALIBRATION, method="minmax", **options)
        self.edge = Edge(self.program.meta, self.program.files)
        self.head = self.program.meta["head"]

    def run(self, rows):
        """Return ((ids, types) of every row, outputs of every row, answers)."""
        texts, *pairs = [list(column) for column in zip(*rows, strict=True)]
        packed = self.edge.encode(texts, *pairs)
        integers = self.program.run(packed.inputs())[self.program.output]
        cuts = packed.cu_seqlens[1:-1]
        columns = (np.split(part, cuts) for part in (packed.input_ids, packed.token_type_ids))
        tokens = [(i.tolist(), t.tolist()) for i, t in zip(*columns, strict=True)]
        outputs = self.edge.real(integers)
        if self.program.meta["head"] in ("features", "token-classification", "question-answering"):
            outputs = np.split(outputs, cuts)
        elif packed.positions is not None:
            outputs = np.split(outputs, np.searchsorted(packed.positions, cuts))
        return tokens, list(outputs), self.edge.decode(packed, integers)


def rows_of(head: str, mask: str | None) -> list[list[tuple[str, ...]]]:
    """Texts to compare on; every group has one number of columns."""
    if head == "sentence-embedding":
        return [SINGLES]
    if head == "question-answering":  # longer documents become windows
        return [[(question[:20], document[:40]) for question, document in PAIRS[:6]]]
    if head == "masked-lm":  # in place of the second word, so that no cut drops it
        return [[(row[0].replace(" ", f" {mask} ", 1), *row[1:]) for row in SINGLES[:8]]]
    return [SINGLES, PAIRS]


def compare(ours: Imported, theirs) -> None:
    """Assert that ids and types are equal, and values and answers as close as rounding allows."""
    assert ours.head == theirs.head
    mask = getattr(getattr(theirs, "tokenizer", None), "mask_token", None)
    for rows in rows_of(ours.head, mask):
        tokens, outputs, answers = ours.run(rows)
        assert tokens == theirs.tokens(rows)
        wanted = theirs.outputs(rows)
        if wanted is not None:
            close(outputs, wanted, vectors=ours.head == "features")
        wanted = theirs.answers(rows)
        if wanted is None:
            continue
        if ours.head == "sentence-embedding":
            embeddings(answers, wanted)
        else:
            scores(answers, wanted)


def close(got: list[np.ndarray], wanted: list[np.ndarray], vectors: bool) -> None:
    """Compare the outputs of every text; vectors: the direction of each as well."""
    assert [g.shape for g in got] == [w.shape for w in wanted]
    if vectors:
        cosines = [cosine(g, w) for g, w in zip(got, wanted, strict=True)]
        assert min(cosines) >= COSINE
    got, wanted = (np.concatenate([np.atleast_2d(v) for v in values]) for values in (got, wanted))
    spread = np.sqrt(np.mean(np.square(wanted - wanted.mean(0))))
    error = np.sqrt(np.mean(np.square(got - wanted)))
    assert spread > 0, "the case cannot fail: all texts give the same"
    assert error <= SHARE * spread


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Cosine between two arrays as vectors."""
    return float((one * other).sum() / np.sqrt(np.square(one).sum() * np.square(other).sum()))


def embeddings(got: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    """Compare embeddings: direction and length."""
    close(got, wanted, vectors=True)
    lengths = np.array(
        [np.linalg.norm(g) / np.linalg.norm(w) for g, w in zip(got, wanted, strict=True)]
    )
    assert np.abs(lengths - 1).max() <= NORM


def scores(got: list[dict], wanted: list) -> None:
    """Compare scores of classes; wanted: {label: score} or scores in the order of the labels."""
    for ours, theirs in zip(got, wanted, strict=True):
        if isinstance(theirs, dict):
            assert set(ours["scores"]) == set(theirs)
            theirs = {label: theirs[label] for label in ours["scores"]}
            named, values = list(theirs), np.array(list(theirs.values()))
        else:
            named, values = list(ours["scores"]), np.array(theirs)
        found = np.array(list(ours["scores"].values()))
        assert np.abs(found - values).max() <= SCORE * max(1, np.abs(values).max())
        ranked = np.sort(values)
        if len(values) > 1 and ranked[-1] - ranked[-2] > 2 * SCORE:
            assert ours["label"] == named[values.argmax()]


__all__ = ["LENGTH", "compare", "equal_to", "refused", "refuses"]
