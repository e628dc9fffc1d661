"""Decorators that say what must happen with the directory that a test writes.

A case of the suite is a test function that takes `folder`, an empty directory (a fixture), and
writes into it:

    @equal_to(Transformers)
    def test_half_precision(folder):
        save(folder, "bert").half().save_pretrained(folder)

    @refused("modules.json", "WordWeights")
    def test_unknown_module(folder):
        ...

equal_to(library)  what is imported has the ids, token types, values and answers of that library
refused(*parts)    import_model raises one line that holds each of the parts
"""

import functools
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from intformer.errors import IntformerError
from intformer.frontend import import_model
from intformer.runtime.edge import Edge, Packed
from intformer_testing.sentence_dirs import Exact, Quantized
from intformer_testing.small_tokenizer import SENTENCES

SHORT = ["yes", "What?", "a cat", "I"]
CALIBRATION = [*SHORT, *SENTENCES[:40], *zip(SENTENCES[40:64], SENTENCES[64:88], strict=True)]
LONG = " ".join(SENTENCES[100:125])  # several times LENGTH tokens
SINGLES = [(text,) for text in (*SENTENCES[90:98], "The Café, İstanbul & 東京!", "no", LONG)]
PAIRS = [
    *zip(SENTENCES[120:126], SENTENCES[130:136], strict=True),
    ("no", LONG),
    (LONG, SENTENCES[4]),
]
SECONDS = 60  # a directory that takes longer to read hangs


@dataclass(frozen=True)
class Bounds:
    """How close values must be.

    share   error of outputs, as a share of them (rms of both)
    logits  the same for sequence classifiers: what random weights add up cancels, noise does not
    cosine  of the features of a text, and of an embedding: at least
    length  error of the length of an embedding, as a share of it
    score   error of a score
    """

    share: float
    logits: float
    cosine: float
    length: float
    score: float


# of float32
ROUNDING = Bounds(share=1e-4, logits=1e-4, cosine=1 - 1e-6, length=1e-4, score=1e-4)
# to int8, of a tiny model
QUANTIZATION = Bounds(share=0.1, logits=0.2, cosine=0.99, length=0.02, score=0.06)


def equal_to(library, groups: list[list[tuple[str, ...]]] | None = None, **options):
    """Expect a directory to be what `library` says it is.

    library  class of `libraries`
    groups   texts to compare on instead of `groups_of`
    options  of import_model: head
    """

    def decorate(case):
        @functools.wraps(case)
        def test(folder, **arguments):
            made = case(folder, **arguments)
            with limited():
                reference = library(folder, made)
                texts = groups or groups_of(reference)
                compare(Exact(folder, **options), reference, texts, ROUNDING)
                quantized = Quantized(folder, calibrate=CALIBRATION, **options)
                compare(quantized, reference, texts, QUANTIZATION)

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


def groups_of(library) -> list[list[tuple[str, ...]]]:
    """Texts to compare on; every group has one number of columns."""
    head = library.head
    if head in ("sentence-embedding", "sparse-embedding"):
        return [SINGLES]
    if head == "question-answering":  # longer documents become windows
        return [[(question[:20], document[:40]) for question, document in PAIRS[:6]]]
    if head == "masked-lm":  # in place of the second word, so that no cut drops it
        return [[(row[0].replace(" ", f" {library.mask} ", 1), *row[1:]) for row in SINGLES[:8]]]
    return [PAIRS] if getattr(library, "pairs_only", False) else [SINGLES, PAIRS]


def compare(ours: Exact | Quantized, theirs, groups: list, bounds: Bounds) -> None:
    """Assert that ids and types are equal, and that values and answers are within the bounds."""
    head = ours.metadata["head"]
    assert head == theirs.head
    edge = Edge(ours.metadata, ours.files())
    for rows in groups:
        packed = edge.encode(*(list(column) for column in zip(*rows, strict=True)))
        assert tokens(packed) == theirs.tokens(rows)
        integers = ours.run(**packed.inputs())
        wanted = theirs.outputs(rows)
        if wanted is not None:
            share = bounds.logits if head == "sequence-classification" else bounds.share
            close(by_text(packed, head, edge.real(integers)), wanted, share)
            if head == "features":
                aligned(by_text(packed, head, edge.real(integers)), wanted, bounds.cosine)
        wanted = theirs.answers(rows)
        if wanted is not None:
            answers = edge.decode(packed, integers)
            if head == "sparse-embedding":
                answers = [weights(words, len(wanted[0])) for words in answers]
            check = scores if head == "sequence-classification" else embeddings
            check(answers, wanted, bounds)


def weights(words: list[dict], vocabulary: int) -> np.ndarray:
    """Return the weight of every word, float32 [vocabulary]; those that are not listed have 0."""
    found = np.zeros(vocabulary, np.float32)
    for word in words:
        found[word["id"]] = word["score"]
    return found


def tokens(packed: Packed) -> list[tuple[list[int], list[int]]]:
    """(ids, types) of every text."""
    cuts = packed.cu_seqlens[1:-1]
    columns = (np.split(part, cuts) for part in (packed.input_ids, packed.token_type_ids))
    return [(ids.tolist(), types.tolist()) for ids, types in zip(*columns, strict=True)]


def by_text(packed: Packed, head: str, rows: np.ndarray) -> list[np.ndarray]:
    """The output rows of every text."""
    if head in ("sentence-embedding", "sequence-classification"):
        return list(rows)
    cuts = packed.cu_seqlens[1:-1]
    return np.split(rows, cuts if head != "masked-lm" else np.searchsorted(packed.positions, cuts))


def close(got: list[np.ndarray], wanted: list[np.ndarray], share: float) -> None:
    """Compare the outputs of every text by their error."""
    assert [g.shape for g in got] == [w.shape for w in wanted]
    got, wanted = (np.concatenate([np.atleast_2d(v) for v in values]) for values in (got, wanted))
    assert rms(got - wanted) <= share * rms(wanted)
    # texts that all give the same could not tell a wrong reading from a right one
    assert rms(wanted - wanted.mean(0)) > 0.05 * rms(wanted)


def aligned(got: list[np.ndarray], wanted: list[np.ndarray], least: float) -> None:
    """Compare the outputs of every text by their direction."""
    assert min(cosine(g, w) for g, w in zip(got, wanted, strict=True)) >= least


def rms(values: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Cosine between two arrays as vectors."""
    one, other = np.float64(one).ravel(), np.float64(other).ravel()
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def embeddings(got: list[np.ndarray], wanted: list[np.ndarray], bounds: Bounds) -> None:
    """Compare embeddings: direction and length."""
    close(got, wanted, bounds.share)
    aligned(got, wanted, bounds.cosine)
    lengths = [np.linalg.norm(g) / np.linalg.norm(w) for g, w in zip(got, wanted, strict=True)]
    assert max(abs(length - 1) for length in lengths) <= bounds.length


def scores(got: list[dict], wanted: list, bounds: Bounds) -> None:
    """Compare scores of classes; wanted: {label: score} or scores in the order of the labels."""
    for ours, theirs in zip(got, wanted, strict=True):
        if isinstance(theirs, dict):
            assert set(ours["scores"]) == set(theirs)
            theirs = [theirs[label] for label in ours["scores"]]
        values = np.array(theirs)
        error = np.abs(np.array(list(ours["scores"].values())) - values).max()
        assert error <= bounds.score * max(1, np.abs(values).max())
        best = list(ours["scores"])[values.argmax()]
        ranked = np.sort(values)
        if len(values) == 1 or ranked[-1] - ranked[-2] > 2 * error:
            assert ours["label"] == best


__all__ = ["equal_to", "refused", "refuses"]
