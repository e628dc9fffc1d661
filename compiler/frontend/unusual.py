"""Texts of unusual shape, made from calibration text: what users send beside sentences.

A model calibrated on sentences alone clips on one word, on one word three hundred times, on
punctuation, on the empty text and on its longest input: their activations lie elsewhere. So these
are added to what sets the ranges.
"""

import random
import string

Text = tuple[str, ...]  # (text,) or (text, second text)

CHARACTERS = string.digits + string.ascii_lowercase + string.punctuation
CHARACTER_RUN = 60
SHORT_TEXTS = 128  # of one to three words
REPEATED_TEXTS = 32  # one word many times
REPEATS = (3, 12, 60, 250)
LONG_TOKENS = 4096  # in all long texts together
LONGEST = 1024  # tokens of one of them, where the model takes as many
CHARACTERS_PER_TOKEN = 6  # at most, nearly always: the tokenizer cuts what is too long


def characters() -> list[str]:
    """Return the empty text, and every printable character once, three times and many times."""
    found = [""]
    for one in CHARACTERS:
        found += [one, one * 3, " ".join([one] * CHARACTER_RUN)]
    return found


def short(lines: list[str], count: int = SHORT_TEXTS, seed: int = 0) -> list[str]:
    """Return `count` texts of one to three words, and a quarter as many of one word repeated."""
    rng = random.Random(seed)
    words = sorted({word for line in lines for word in line.split()}) or [""]
    few = [" ".join(rng.choices(words, k=rng.choice((1, 1, 2, 3)))) for _ in range(count)]
    return few + [" ".join([rng.choice(words)] * rng.choice(REPEATS)) for _ in range(count // 4)]


def long(lines: list[str], tokens: int, count: int, seed: int = 0) -> list[str]:
    """Return `count` texts of joined lines, of `tokens` tokens or more."""
    rng = random.Random(seed)
    lines = [line for line in lines if line.strip()] or ["."]
    found = []
    for _ in range(count):
        parts, size = [], 0
        while size < tokens * CHARACTERS_PER_TOKEN:
            parts.append(rng.choice(lines))
            size += len(parts[-1])
        found.append(" ".join(parts))
    return found
