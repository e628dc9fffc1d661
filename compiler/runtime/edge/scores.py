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


def distances(a: np.ndarray, b: np.ndarray, order: int) -> np.ndarray:
    """Return the L1 or L2 norm of every difference, float32 [len(a), len(b)]; vectors in rows."""
    return np.stack([np.linalg.norm(b - row, order, axis=1) for row in a])


def l2_normalised(rows: np.ndarray) -> np.ndarray:
    """Return rows of Euclidean length 1; a zero row stays zero."""
    length = np.sqrt(np.square(rows, dtype=np.float64).sum(-1, keepdims=True))
    return (rows / np.maximum(length, np.finfo(np.float32).tiny)).astype(np.float32)


SIMILARITIES = {  # similarity_fn_name of sentence-transformers -> its function: more is more alike
    "cosine": lambda a, b: l2_normalised(a) @ l2_normalised(b).T,
    "dot": lambda a, b: a @ b.T,
    "euclidean": lambda a, b: -distances(a, b, 2),
    "manhattan": lambda a, b: -distances(a, b, 1),
}
