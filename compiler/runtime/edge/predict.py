"""Texts in, answers out."""

from collections.abc import Iterable, Iterator
from functools import partial

from intformer.errors import IntformerError
from intformer.runtime.edge.answers import check_options
from intformer.runtime.edge.stream import answered
from intformer.runtime.edge.text import Edge, texts_of
from intformer.runtime.library import Library

ENCODING = ("doc_stride", "prompt", "prompt_name")  # options of predict that Edge.encode takes
BATCH_TOKENS = 512  # a longer run costs as much per token, and its text waits longer


def predict(
    library: Library,
    texts: Iterable[str],
    pairs: Iterable[str] | None = None,
    *,
    batch_tokens: int = BATCH_TOKENS,
    **options,
) -> Iterator:
    """Yield the answer for each text in order, while the library computes the next ones.

    library       as load() returns it
    texts, pairs  any iterables of strings, read a few runs ahead of the answers; pairs has as many
                  as texts
    batch_tokens  tokens to compute in a run, or one sequence where that is longer
    options       doc_stride, prompt and prompt_name of Edge.encode, and those of Edge.decode;
                  one that the head does not take is refused
    """
    texts = texts_of(texts, "texts")
    pairs = None if pairs is None else texts_of(pairs, "pairs")
    if batch_tokens < 1:
        raise IntformerError(f"batch_tokens = {batch_tokens}", hint="at least 1 token is run")
    edge = Edge.of(library)
    if "doc_stride" in options and not edge.head.answers_questions:
        raise IntformerError(f"head {edge.head.name} takes no doc_stride", hint="leave it out")
    check_options(edge.head, options.keys() - set(ENCODING))
    encoding = {name: options.pop(name) for name in ENCODING if name in options}
    rows = ((text,) for text in texts) if pairs is None else _rows(texts, pairs)
    decode = partial(edge.decode, **options)
    return answered(library, edge, rows, decode, batch_tokens, **encoding)


def _rows(texts: Iterator[str], pairs: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Yield (text, pair); raise IntformerError where one of them ends before the other."""
    count, end = 0, object()
    while True:
        text, pair = next(texts, end), next(pairs, end)
        if text is end and pair is end:
            return
        if text is end or pair is end:
            few, many = ("pairs", "texts") if pair is end else ("texts", "pairs")
            raise IntformerError(f"{count} {few}, but more {many}", hint="each text has one pair")
        yield text, pair
        count += 1
