"""Scores of answers and words against figures worked out by hand."""

import numpy as np
import pytest

from intformer.qat import metrics


def test_squad_normalisation():
    assert metrics.normalised("The  Denver-Broncos, a team!") == ["denverbroncos", "team"]


def test_exact_match_and_f1():
    wanted = ["Denver Broncos", "the Broncos"]
    assert metrics.exact_match("broncos", wanted) == 1
    assert metrics.exact_match("denver", wanted) == 0
    # 1 word in common: 2 * 1 / (1 + 2) with the first, 0 with the second
    assert metrics.overlap("denver", wanted) == pytest.approx(2 / 3)
    # 2 in common of 3 and 2
    assert metrics.overlap("the Denver Broncos team", wanted) == pytest.approx(4 / 5)
    # a word counts as often as it is in both
    assert metrics.overlap("no no no", ["no yes"]) == pytest.approx(2 / 5)
    assert metrics.overlap("", ["x"]) == 0
    assert metrics.overlap("the", ["a"]) == 1  # nothing is left of either
    scores = metrics.answer_scores(["denver", "broncos"], [wanted, wanted])
    assert scores == pytest.approx({"f1": (2 / 3 + 1) / 2, "exact_match": 0.5})


def test_words():
    predicted, wanted = np.array([0, 1, 1, 2, 0, -1]), np.array([0, 1, 2, 2, 1, 0])
    scores = metrics.word_scores(predicted, wanted, outside=0)
    # right and not outside: 2; found 4 (a word that was cut off among them), wanted 4
    assert scores == pytest.approx({"f1": 2 * 2 / (4 + 4), "accuracy": 3 / 6})
    assert metrics.word_scores(predicted, wanted, None)["f1"] == pytest.approx(3 / 6)
    assert metrics.word_scores(np.zeros(3), np.zeros(3), 0)["f1"] == 0
