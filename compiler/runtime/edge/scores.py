"""Real outputs become scores and unit vectors."""

import numpy as np


def softmax(rows: np.ndarray) -> np.ndarray:
    """Return the softmax along the last axis."""
    e = np.exp(rows - rows.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(rows: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), without overflow and exact to the last bits in both tails."""
    return np.exp(-np.logaddexp(0, -rows))


SCORE_FUNCTIONS = {"softmax": softmax, "sigmoid": sigmoid, "identity": np.array}


def score_function(problem_type: str | None, labels: int) -> str:
    """Return the key of SCORE_FUNCTIONS that transformers' text-classification pipeline applies."""
    if problem_type == "regression":
        return "identity"
    return "sigmoid" if labels == 1 or problem_type == "multi_label_classification" else "softmax"


def l2_normalised(rows: np.ndarray) -> np.ndarray:
    """Return rows of Euclidean length 1; a zero row stays zero."""
    length = np.sqrt(np.square(rows, dtype=np.float64).sum(-1, keepdims=True))
    return (rows / np.maximum(length, np.finfo(np.float32).tiny)).astype(np.float32)
