"""What a span or a sequence of labels is worth; the metrics of whole rows are in accuracy."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

OUTSIDE = "O"  # the label of a word that is part of nothing


def normalised(text: str) -> list[str]:
    """Return the words SQuAD compares: lower case, without punctuation and articles."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def exact_match(answer: str, wanted: Sequence[str]) -> float:
    """Return 1 where the answer has the words of one of the wanted ones, else 0."""
    return float(any(normalised(answer) == normalised(one) for one in wanted))


def overlap(answer: str, wanted: Sequence[str]) -> float:
    """Return the best F1 of the answer's words against one of the wanted answers."""
    return max(_overlap(normalised(answer), normalised(one)) for one in wanted)


def _overlap(answer: list[str], wanted: list[str]) -> float:
    if not answer or not wanted:
        return float(answer == wanted)
    common = sum((Counter(answer) & Counter(wanted)).values())
    return 2 * common / (len(answer) + len(wanted))


def answer_scores(answers: Sequence[str], wanted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return {"f1", "exact_match"} of answers to questions, each with one right answer or more."""
    pairs = list(zip(answers, wanted, strict=True))
    return {
        "f1": float(np.mean([overlap(*pair) for pair in pairs])),
        "exact_match": float(np.mean([exact_match(*pair) for pair in pairs])),
    }


def word_scores(predicted: np.ndarray, wanted: np.ndarray, outside: int | None) -> dict[str, float]:
    """Return {"accuracy", "f1"} of labelled words.

    predicted, wanted  int [words]
    outside            label that F1 leaves out; None: every label counts, and F1 is the accuracy
    """
    equal = predicted == wanted
    hits = np.sum(equal & (wanted != outside))
    found = np.sum(predicted != outside) + np.sum(wanted != outside)
    return {"f1": float(2 * hits / found) if found else 0.0, "accuracy": float(np.mean(equal))}
