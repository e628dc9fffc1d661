"""Texts in, answers out."""

from collections.abc import Iterable, Iterator
from itertools import islice

from intformer.errors import IntformerError
from intformer.runtime.edge.text import Edge, texts_of
from intformer.runtime.library import Library

ENCODING = ("doc_stride", "prompt", "prompt_name")  # options of predict that Edge.encode takes


def predict(
    library: Library,
    texts: Iterable[str],
    pairs: Iterable[str] | None = None,
    *,
    batch: int = 32,
    **options,
) -> Iterator:
    """Yield the answer for each text in order, running `batch` texts at a time.

    library       as load() returns it
    texts, pairs  any iterables of strings, read as far as a batch needs; pairs has as many as texts
    options       doc_stride, prompt and prompt_name of Edge.encode, and those of Edge.decode
    """
    texts = texts_of(texts, "texts")
    pairs = None if pairs is None else texts_of(pairs, "pairs")
    if batch < 1:
        raise IntformerError(f"batch = {batch}", hint="at least 1 text is run at a time")
    return _answers(library, Edge.of(library), texts, pairs, batch, options)


def _answers(
    library: Library,
    edge: Edge,
    texts: Iterator[str],
    pairs: Iterator[str] | None,
    batch: int,
    options: dict,
) -> Iterator:
    encoding = {name: options.pop(name) for name in ENCODING if name in options}
    first = 0
    while True:
        some = list(islice(texts, batch))
        others = None if pairs is None else list(islice(pairs, max(len(some), 1)))
        if others is not None and len(others) != len(some):
            few, many = ("pairs", "texts") if len(others) < len(some) else ("texts", "pairs")
            count = first + min(len(some), len(others))
            raise IntformerError(f"{count} {few}, but more {many}", hint="each text has one pair")
        if not some:
            return
        packed = edge.encode(some, others, first=first, **encoding)
        yield from edge.decode(packed, library.run(**packed.inputs()), **options)
        first += len(some)
