"""Rows of texts to answers, as a stream: text is tokenized and answered while the library computes.

The caller's thread reads, tokenizes and decodes; one thread beside it runs the library, which lets
go of the interpreter. Memory is bounded by a few chunks, whatever the number of texts.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from intformer.runtime.edge.packed import Packed
from intformer.runtime.edge.text import Edge
from intformer.runtime.library import Library

FIRST_ROWS, MOST_ROWS = 16, 1024  # of a chunk: text that is tokenized at once
CHUNK = 4  # runs in a chunk, about
AHEAD = 1  # chunks that wait while one is computed

Decode = Callable[[Packed, np.ndarray], list]


def answered(
    library: Library,
    edge: Edge,
    rows: Iterator[tuple[str, ...]],
    decode: Decode,
    batch_tokens: int,
    **encoding,
) -> Iterator:
    """Yield one answer per row, in order.

    rows          (text,) or (text, pair), all of one kind
    decode        (what was encoded, integers of the library) -> an answer per row
    batch_tokens  tokens of a run, or one sequence where that is longer
    encoding      options of Edge.encode
    """
    chunks = _chunks(edge, rows, batch_tokens, encoding)
    packed, last = next(chunks, (None, True))
    if packed is None:
        return
    if last:  # nothing to overlap with
        yield from decode(packed, outputs(library, packed, batch_tokens))
        return
    runner = ThreadPoolExecutor(1, "intformer-predict")
    try:
        waiting = deque([(packed, runner.submit(outputs, library, packed, batch_tokens))])
        fault = None
        while waiting:
            try:
                packed, _ = next(chunks, (None, True)) if fault is None else (None, True)
            except Exception as error:  # after the answers to what came before it
                packed, fault = None, error
            if packed is not None:
                waiting.append((packed, runner.submit(outputs, library, packed, batch_tokens)))
            if packed is None or len(waiting) > AHEAD:
                done, running = waiting.popleft()
                yield from decode(done, running.result())
        if fault is not None:
            raise fault
    finally:
        runner.shutdown(cancel_futures=True)


def outputs(library: Library, packed: Packed, batch_tokens: int) -> np.ndarray:
    """Return what the library computes from packed sequences, int32 [rows, channels]."""
    found = [library.run(**inputs) for inputs in packed.runs(batch_tokens)]
    return found[0] if len(found) == 1 else np.concatenate(found)


def _chunks(
    edge: Edge, rows: Iterator[tuple[str, ...]], batch_tokens: int, encoding: dict
) -> Iterator[tuple[Packed, bool]]:
    """Yield what is encoded at once, as many rows as fill CHUNK runs, and if it is the last."""
    first = tokens = 0
    count = FIRST_ROWS
    while some := list(islice(rows, count)):
        texts, *pairs = zip(*some, strict=True)
        packed = edge.encode(texts, *pairs, first=first, **encoding)
        yield packed, len(some) < count
        first += len(some)
        tokens += packed.input_ids.size
        count = min(max(CHUNK * batch_tokens * first // tokens, 1), MOST_ROWS)
