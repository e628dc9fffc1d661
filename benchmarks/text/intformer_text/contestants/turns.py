"""What contestants share: the texts, and what a turn is.

spec["lines"] is a JSON file of texts. With spec["mode"] "many" a run embeds all of them in one
call, with "one" the next of them. The vectors of the first SHOWN are reported, for comparison.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from intformer_race.contestants import protocol

SHOWN = 8
LONGEST = 256  # tokens, what the model's directory says

spec = protocol.spec


def take(encode: Callable[[Sequence[str]], np.ndarray], version: str) -> None:
    """Take turns with a function that embeds texts, float [texts, channels]."""
    texts = json.loads(Path(spec["lines"]).read_text())
    one = itertools.cycle(texts)
    runs = {"many": lambda: encode(texts), "one": lambda: encode([next(one)])}
    shown = np.asarray(encode(texts[:SHOWN]), np.float32)
    protocol.serve(runs[spec["mode"]], {"version": version, "vectors": shown.tolist()})
