"""Rows of texts to answers, as a stream: text is tokenized and answered while the library computes.

The caller's thread reads, tokenizes and decodes. Beside it as many threads as the library computes
with take a run each, alone: no thread waits for another after every kernel. The library lets go of
the interpreter. Memory is bounded by a few chunks, whatever the number of texts.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import chain, islice

import numpy as np

from intformer.runtime.edge.packed import Packed
from intformer.runtime.edge.text import Edge
from intformer.runtime.library import Library

FIRST_ROWS, MOST_ROWS = 16, 1024  # of a chunk: text that is tokenized at once
CHUNK = 4  # runs in a chunk, about, or one for every thread
AHEAD = 1  # chunks that wait while one is computed
SHORT = 4  # times shorter are the last runs, so that all threads end together

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
    workers = library.threads if library.runs_alone else 1
    chunks = _chunks(edge, rows, batch_tokens * max(CHUNK, workers), encoding)
    packed, last = next(chunks, (None, True))
    if packed is None:
        return
    if last:  # nothing to overlap with
        yield from decode(packed, outputs(library, packed, batch_tokens))
        return
    alone = {"initializer": library.run_alone} if workers > 1 else {}
    runner = ThreadPoolExecutor(workers, "intformer-predict", **alone)
    try:
        several = chain([(packed, last)], chunks)
        for one, running in _started(runner, library, several, batch_tokens, workers):
            yield from decode(one, np.concatenate([run.result() for run in running]))
    finally:
        runner.shutdown(cancel_futures=True)


def _started(
    runner: Executor, library: Library, chunks: Iterator, batch_tokens: int, workers: int
) -> Iterator[tuple[Packed, list[Future]]]:
    """Yield each chunk with its runs, which may still compute; AHEAD more have been started."""
    waiting, fault = deque(), None
    while True:
        try:
            packed, last = next(chunks, (None, True))
        except Exception as error:  # after the answers to what came before it
            packed, fault = None, error
        if packed is None:
            break
        tokens = max(1, batch_tokens // SHORT) if last and workers > 1 else batch_tokens
        runs = packed.runs(tokens)
        waiting.append((packed, [runner.submit(library.run, **one) for one in runs]))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting
    if fault is not None:
        raise fault


def outputs(library: Library, packed: Packed, batch_tokens: int) -> np.ndarray:
    """Return what the library computes from packed sequences, int32 [rows, channels]."""
    found = [library.run(**inputs) for inputs in packed.runs(batch_tokens)]
    return found[0] if len(found) == 1 else np.concatenate(found)


def _chunks(
    edge: Edge, rows: Iterator[tuple[str, ...]], most: int, encoding: dict
) -> Iterator[tuple[Packed, bool]]:
    """Yield what is encoded at once, rows of about `most` tokens, and if it is the last."""
    first = tokens = 0
    count = FIRST_ROWS
    while some := list(islice(rows, count)):
        texts, *pairs = zip(*some, strict=True)
        packed = edge.encode(texts, *pairs, first=first, **encoding)
        yield packed, len(some) < count
        first += len(some)
        tokens += packed.input_ids.size
        count = min(max(most * first // tokens, 1), MOST_ROWS)
