"""Labelled rows: how they are parted, and which token a word's label goes to."""

from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from intformer.errors import IntformerError
from intformer.qat import tasks
from intformer.qat.packing import IGNORED
from intformer_testing.train_files import answers, table

CONFIG = SimpleNamespace(pad_token_id=0, type_vocab_size=2)
SPACE = pre_tokenizers.Metaspace().replacement


def test_rows_and_held_out_part(tmp_path):
    rows = tasks.read(table(tmp_path / "a"), "sst2")
    fit, held = rows.split(0.1, 20, 0)
    assert (len(fit.texts), len(held.texts)) == (18, 2)
    again = rows.split(0.1, 20, 0)
    assert (fit, held) == again
    assert rows.split(0.1, 20, 1)[0] != fit


def test_no_held_out_context_is_trained_on(tmp_path):
    rows = tasks.read(answers(tmp_path / "a", rows=60), tasks.ANSWERS)
    fit, held = rows.split(0.2, None, 0)
    assert not {c for _, c in fit.texts} & {c for _, c in held.texts}
    assert len(fit.texts) + len(held.texts) == 60


def words_of(texts, pieces, pre_tokenizer, length=16):
    """Return the words that the labels of every sequence are of; a row's labels are its words."""
    tokenizer = Tokenizer(models.WordLevel({p: i for i, p in enumerate(["?", *pieces])}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizer
    words = [text.split(" ") for text in texts]
    spans = []
    for row in words:
        starts = [sum(len(word) + 1 for word in row[:i]) for i in range(len(row))]
        spans.append([(s, s + len(word)) for s, word in zip(starts, row, strict=True)])
    labels = [list(range(len(row))) for row in words]
    rows = tasks.Rows(tasks.TOKENS, [(text,) for text in texts], labels, ("a", "b"), spans)
    files = {"tokenizer.json": tokenizer.to_str().encode()}
    return [f["labels"].tolist() for f in tasks.Encoded(rows, CONFIG, files, length).features]


def test_a_token_may_begin_with_the_space():
    """Offsets of a plain Metaspace: (0, 5), (5, 9), (9, 15)."""
    pieces = [SPACE + word for word in ("Hello", "big", "world")]
    text = "Hello big world"
    assert words_of([text], pieces, pre_tokenizers.Metaspace()) == [[0, 1, 2]]
    assert words_of([text], pieces, pre_tokenizers.Metaspace(), 2) == [[0, 1]]
    parts = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(SPACE, "isolated")]
    )
    got = words_of([text], ["Hello", "big", "world", SPACE], parts)
    assert got == [[0, IGNORED, IGNORED, 1, IGNORED, 2]]  # the first space is of the first word


def test_tokens_over_spaces_are_refused():
    split = pre_tokenizers.Split(";", "removed")
    with pytest.raises(IntformerError, match=r"begins with word 'b;c' of 'a b;c'.*tokenizer\.json"):
        words_of(["a b;c"], ["a b", "c"], split)


def test_a_word_that_the_tokenizer_drops_has_no_label():
    assert words_of(["a ; b"], ["a ", " b"], pre_tokenizers.Split(";", "removed")) == [[0, 2]]


def test_f1_is_that_of_the_task_s_class():
    """A head that has the classes the other way round is scored as one that has not."""
    files = {"tokenizer.json": Tokenizer(models.WordLevel({"?": 0}, "?")).to_str().encode()}
    wanted, answered = np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 1])
    texts = [("?", "?")] * len(wanted)
    names = ("not_equivalent", "equivalent")
    for labels, swap in ((names, 0), (names[::-1], 1), (("LABEL_0", "LABEL_1"), 0)):
        rows = tasks.Rows("mrpc", texts, (wanted ^ swap).tolist(), labels)
        found, predicted = tasks.Encoded(rows, CONFIG, files, 16).score(np.eye(2)[answered ^ swap])
        assert found == {"f1": pytest.approx(4 / 7), "accuracy": pytest.approx(0.4)}
        assert predicted == (answered ^ swap).tolist()
