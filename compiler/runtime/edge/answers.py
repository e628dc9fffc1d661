"""Integer outputs become answers: one function per head. What stays in float is here."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from intformer.errors import IntformerError
from intformer.ir import heads
from intformer.runtime.edge.packed import Packed
from intformer.runtime.edge.scores import SCORE_FUNCTIONS, l2_normalised, score_function, softmax

if TYPE_CHECKING:
    from intformer.runtime.edge.text import Edge

MAX_ANSWER = 30  # tokens in an answer of question answering
TOP_K = 5  # candidates for each mask


def decode(edge: "Edge", packed: Packed, output: np.ndarray, **options) -> list:
    """Return the answers of Edge.decode, one per text, by head.

    sentence-embedding       float32 [channels], of L2 norm 1 if metadata["normalize"]
    features                 float32 [tokens, channels]
    sequence-classification  {"label", "score", "scores": {label: score}}; scores are
                             metadata["score_function"] of the logits, in float64
    token-classification     [{"token", "label", "score", "start", "end"}], no special tokens
    question-answering       {"answer", "score", "start", "end"}; max_answer: its tokens at most
    masked-lm                per mask: the top_k [{"token", "id", "score"}], best first
    sparse-embedding         [{"token", "id", "score"}] of all words above 0, heaviest first; top_k:
                             so many at most
    """
    head = heads.head_of(edge.metadata)
    check_options(head, options)
    if head.quotes and not packed.encodings:
        raise IntformerError(
            f"decoding {head.name} needs the text",
            hint="pack with Edge.encode, not from arrays",
        )
    return ANSWERS[head](edge, packed, edge.real(output), **options)


@cache
def _options(answer: Callable) -> list[str]:
    return list(inspect.signature(answer).parameters)[3:]  # behind edge, packed and rows


def check_options(head: heads.Head, options: Iterable[str]) -> None:
    """Raise IntformerError for an option that the answers of a head do not take."""
    takes = _options(ANSWERS[head])
    for name in options:
        if name not in takes:
            known = f"its options: {', '.join(takes)}" if takes else "it has no options"
            raise IntformerError(f"head {head.name} takes no {name}", hint=f"leave it out; {known}")


def vectors_of_texts(edge: "Edge", packed: Packed, rows: np.ndarray) -> list[np.ndarray]:
    """One vector per text, float32 [channels]."""
    if edge.metadata.get("normalize", True):  # without the key: always, in older libraries
        rows = l2_normalised(rows)
    return list(rows[:, : edge.metadata.get("truncate_dim")])


def vectors_of_tokens(edge: "Edge", packed: Packed, rows: np.ndarray) -> list[np.ndarray]:
    """One vector per token of each text, float32 [tokens, channels]."""
    return np.split(rows, packed.cu_seqlens[1:-1])


def classes_of_texts(edge: "Edge", packed: Packed, rows: np.ndarray) -> list[dict]:
    """The label of each text, and the scores of all labels."""
    labels = edge.metadata["labels"]
    named = edge.metadata.get("score_function") or score_function(
        edge.metadata.get("problem_type"), len(labels)
    )
    scores = SCORE_FUNCTIONS[named](rows.astype(np.float64))
    best = rows.argmax(1)
    return [
        {
            "label": labels[top],
            "score": float(row[top]),
            "scores": {label: float(s) for label, s in zip(labels, row, strict=True)},
        }
        for top, row in zip(best, scores, strict=True)
    ]


def classes_of_tokens(edge: "Edge", packed: Packed, rows: np.ndarray) -> list[list[dict]]:
    """The label of each token that is no special one."""
    labels = edge.metadata["labels"]
    scores = softmax(rows)
    answers = []
    for first, encoding in zip(packed.cu_seqlens, packed.encodings, strict=False):
        answers.append(
            [
                {
                    "token": encoding.tokens[i],
                    "label": labels[scores[first + i].argmax()],
                    "score": float(scores[first + i].max()),
                    "start": encoding.offsets[i][0],
                    "end": encoding.offsets[i][1],
                }
                for i, special in enumerate(encoding.special_tokens_mask)
                if not special
            ]
        )
    return answers


def spans(
    edge: "Edge", packed: Packed, rows: np.ndarray, max_answer: int = MAX_ANSWER
) -> list[dict]:
    """The best span of each document."""
    found: dict[int, list[tuple]] = {i: [] for i in range(len(packed.texts))}
    for number, encoding in enumerate(packed.encodings):
        start, end = packed.cu_seqlens[number : number + 2]
        inside = np.array([s == 1 for s in encoding.sequence_ids])
        for span in answer_spans(rows[start:end, 0], rows[start:end, 1], inside, max_answer):
            score, first, last = span
            place = (encoding.offsets[first][0], encoding.offsets[last][1])
            found[packed.text_of[number]].append((score, *place))
    return [_best(packed.texts[i], some) for i, some in found.items()]


def _best(texts: tuple[str, ...], spans: list[tuple]) -> dict:
    if not spans:
        return {"answer": "", "score": 0.0, "start": 0, "end": 0}
    # windows overlap: the same span counts once, with its best score
    best: dict[tuple[int, int], float] = {}
    for score, start, end in spans:
        best[start, end] = max(score, best.get((start, end), -np.inf))
    (start, end), _ = top = max(best.items(), key=lambda item: item[1])
    share = 1 / np.exp(np.array(list(best.values())) - top[1]).sum()
    text = texts[1][start:end]
    start += len(text) - len(text.lstrip())
    text = text.strip()
    return {"answer": text, "score": float(share), "start": start, "end": start + len(text)}


def words(
    edge: "Edge", packed: Packed, rows: np.ndarray, top_k: int = TOP_K
) -> list[list[list[dict]]]:
    """The best words of each mask."""
    scores = softmax(rows)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    answers: list[list[list[dict]]] = [[] for _ in packed.cu_seqlens[1:]]
    sequences = np.searchsorted(packed.cu_seqlens, packed.positions, side="right") - 1
    for row, sequence in enumerate(sequences):
        answers[sequence].append([_word(edge, i, scores[row, i]) for i in order[row]])
    return answers


def weights_of_words(
    edge: "Edge", packed: Packed, rows: np.ndarray, top_k: int | None = None
) -> list[list[dict]]:
    """The words that a text stands for and their weights, log(1 + largest logit), above 0."""
    weights = np.log1p(np.maximum(rows, 0))
    answers = []
    for row in weights:
        order = np.argsort(-row, kind="stable")[: np.count_nonzero(row)]
        answers.append([_word(edge, i, row[i]) for i in order[:top_k]])
    return answers


def _word(edge: "Edge", number: int, score: float) -> dict:
    token = edge.tokenizer.id_to_token(int(number))
    return {"token": token, "id": int(number), "score": float(score)}


def answer_spans(
    start: np.ndarray, end: np.ndarray, inside: np.ndarray, max_answer: int
) -> Iterator[tuple[float, int, int]]:
    """Yield (start logit + end logit, first token, last token) of every possible answer.

    start, end  float [tokens], logits of one window
    inside      bool [tokens], true in the document
    """
    where = np.flatnonzero(inside)
    for first in where:
        last = where[(where >= first) & (where < first + max_answer)]
        yield from zip(
            (start[first] + end[last]).tolist(),
            [int(first)] * len(last),
            last.tolist(),
            strict=True,
        )


def plain(answer: object) -> object:
    """Return an answer without NumPy in it."""
    return answer.tolist() if hasattr(answer, "tolist") else answer


ANSWERS = {  # head -> its function
    heads.SENTENCE_EMBEDDING: vectors_of_texts,
    heads.FEATURES: vectors_of_tokens,
    heads.SEQUENCE_CLASSIFICATION: classes_of_texts,
    heads.TOKEN_CLASSIFICATION: classes_of_tokens,
    heads.QUESTION_ANSWERING: spans,
    heads.MASKED_LM: words,
    heads.SPARSE_EMBEDDING: weights_of_words,
}
