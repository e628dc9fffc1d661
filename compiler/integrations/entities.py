"""Labelled tokens become entities, by the aggregation strategies of transformers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from intformer.runtime.edge import Edge

UNKNOWN = ("[UNK]", "<unk>")  # names of the unknown token where the model of words has none


@dataclass(frozen=True)
class Token:
    """A token of a text that is no special one.

    word        its text; that of the source where it is unknown
    scores      of every label, float32 [labels]
    start, end  its place in the source
    index       in the sequence
    subword     whether it goes on with the word before it
    """

    word: str
    scores: np.ndarray
    start: int
    end: int
    index: int
    subword: bool


class Words:
    """What a tokenizer says of its words: how they are joined, and which token is unknown."""

    def __init__(self, edge: Edge):
        """Read it once; each look at Tokenizer.model makes a copy."""
        tokenizer: Tokenizer = edge.tokenizer
        self.decoder, model = tokenizer.decoder, tokenizer.model
        self.has_prefix = bool(getattr(model, "continuing_subword_prefix", None))
        named = (getattr(model, "unk_token", None), *UNKNOWN)
        ids = (tokenizer.token_to_id(token) for token in named if token)
        self.unknown = next((number for number in ids if number is not None), None)

    def joined(self, words: list[str]) -> str:
        """Return the text of tokens."""
        return " ".join(words) if self.decoder is None else self.decoder.decode(words)

    def tokens(self, text: str, encoding: Encoding, scores: np.ndarray) -> list[Token]:
        """Return the tokens of a text; scores is float32 [tokens, labels]."""
        found = []
        for i, (word, (start, end)) in enumerate(
            zip(encoding.tokens, encoding.offsets, strict=True)
        ):
            if encoding.special_tokens_mask[i]:
                continue
            source = text[start:end]
            if self.has_prefix:
                subword = len(word) != len(source)
            else:
                subword = start > 0 and " " not in text[start - 1 : start + 1]
            if encoding.ids[i] == self.unknown:
                word, subword = source, False
            found.append(Token(word, scores[i], start, end, i, subword))
        return found


def entities(tokens: list[Token], labels: list[str], strategy: str, words: Words) -> list[dict]:
    """Return the entities of a text, in order.

    strategy  one of STRATEGIES

    "none" gives one for each token: {"entity", "score", "index", "word", "start", "end"}; the
    others {"entity_group", "score", "word", "start", "end"}.
    """
    found = []
    for group in _groups(tokens, strategy):
        scores = STRATEGIES[strategy]([token.scores for token in group])
        best = int(scores.argmax())
        one = {"entity": labels[best], "score": float(scores[best])}
        if strategy in BY_TOKEN:
            one |= {"index": group[0].index, "word": group[0].word}
        else:
            one |= {"word": words.joined([token.word for token in group])}
        found.append(one | {"start": group[0].start, "end": group[-1].end})
    return found if strategy == "none" else _runs(found, words)


def _groups(tokens: list[Token], strategy: str) -> list[list[Token]]:
    """Return each token by itself, or the tokens of each word."""
    groups: list[list[Token]] = []
    for token in tokens:
        if groups and token.subword and strategy not in BY_TOKEN:
            groups[-1].append(token)
        else:
            groups.append([token])
    return groups


def _runs(found: list[dict], words: Words) -> list[dict]:
    """Join neighbours of the same label; B- starts an entity of its own."""
    runs: list[list[dict]] = []
    last = None
    for one in found:
        begins, tag = one["entity"].startswith("B-"), one["entity"].removeprefix("B-")
        tag = tag if begins else tag.removeprefix("I-")
        if runs and tag == last and not begins:
            runs[-1].append(one)
        else:
            runs.append([one])
        last = tag
    return [
        {
            "entity_group": run[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean([one["score"] for one in run])),
            "word": words.joined([one["word"] for one in run]),
            "start": run[0]["start"],
            "end": run[-1]["end"],
        }
        for run in runs
    ]


def _first(scores: list[np.ndarray]) -> np.ndarray:
    return scores[0]


def _average(scores: list[np.ndarray]) -> np.ndarray:
    return np.mean(scores, axis=0)


def _largest(scores: list[np.ndarray]) -> np.ndarray:
    return max(scores, key=np.max)


BY_TOKEN = ("none", "simple")
STRATEGIES: dict[str, Callable[[list[np.ndarray]], np.ndarray]] = {  # scores of a word's tokens
    "none": _first,
    "simple": _first,
    "first": _first,
    "average": _average,
    "max": _largest,
}
