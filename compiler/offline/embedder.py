"""Batches of columns become batches with vectors."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from intformer.errors import IntformerError
from intformer.ir.heads import head_of
from intformer.runtime.edge import predict
from intformer.runtime.edge.predict import BATCH_TOKENS
from intformer.runtime.edge.text import Edge
from intformer.runtime.library import Library, load

VECTORS = "embedding"  # the column that is added


class Embedder:
    """A library that embeds, called with batches as Ray Data's `map_batches` makes them.

    library       of head sentence-embedding, or its path
    column        of the texts
    prompt_name   prompt of the model to put before each text; None: its default
    batch_tokens  tokens of a run
    threads       that compute; 0: as many as affinity and quota allow

    A copy in another process loads the library from its path.
    """

    def __init__(
        self,
        library: Library | str | os.PathLike,
        column: str = "text",
        *,
        prompt_name: str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        threads: int = 0,
    ):
        """Take a loaded library, or load one; raise IntformerError for one of another head."""
        self.library = library if isinstance(library, Library) else load(library)
        head = head_of(self.library.metadata)
        if not head.embeds:
            raise IntformerError(
                f"head {head.name} makes no vectors",
                where=str(self.library.path),
                hint="compile with --head sentence-embedding",
            )
        self.column = column
        self.options = {"batch_tokens": batch_tokens}
        if prompt_name is not None:
            self.options["prompt_name"] = prompt_name
        Edge.of(self.library).prompt(None, prompt_name)  # refuses an unknown one now
        if threads:
            self.library.set_threads(threads)

    @property
    def channels(self) -> int:
        """Of a vector."""
        about = self.library.metadata
        return min(about["output_channels"], about.get("truncate_dim") or about["output_channels"])

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the columns of a batch and one more, float32 [rows, channels]."""
        if self.column not in batch:
            raise IntformerError(
                f"no column {self.column!r}", hint="columns: " + ", ".join(map(repr, batch))
            )
        if VECTORS in batch:
            raise IntformerError(f"there is a column {VECTORS!r} already", hint="rename it")
        return {**batch, VECTORS: self.vectors(batch[self.column])}

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of texts, float32 [texts, channels]."""
        found = list(self.each(texts))
        return np.stack(found) if found else np.zeros((0, self.channels), np.float32)

    def each(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield the vector of each text, float32 [channels]."""
        return predict(self.library, texts, **self.options)
