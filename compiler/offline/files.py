"""A file of texts becomes a file of vectors."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from intformer.errors import IntformerError, require
from intformer.offline.embedder import VECTORS, Embedder
from intformer.progress import progress
from intformer.runtime.edge.predict import BATCH_TOKENS

if TYPE_CHECKING:
    from intformer.offline.parts import Parts
    from intformer.offline.tables import TextFile

ROWS = 4096  # of a part


@dataclass(frozen=True)
class Embedded:
    """What `embed` did.

    rows      of the output
    resumed   rows that an earlier run had done
    channels  of a vector
    seconds   of this run
    """

    rows: int
    resumed: int
    channels: int
    seconds: float


def embed(
    library: str | os.PathLike,
    input: str | os.PathLike,
    output: str | os.PathLike,
    *,
    column: str | None = None,
    prompt_name: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    threads: int = 0,
    part_rows: int = ROWS,
) -> Embedded:
    """Embed every text of a file; killed and called again, go on where it was.

    library       compiled library of head sentence-embedding
    input         parquet, CSV, TSV, JSON lines, or a text per line: .parquet .csv .tsv .jsonl .txt
    output        parquet file: the columns of the input and "embedding", float32 [channels]
    column        of the texts; default: `sentence`, `text` or the only one
    prompt_name   prompt of the model to put before each text; None: its default
    batch_tokens  tokens to compute in a run, or one sequence where that is longer
    threads       that compute; 0: as many as affinity and quota allow
    part_rows     rows that are held in memory and kept at a time, in a folder beside the output
    """
    require("pyarrow")
    from intformer.offline.parts import Parts
    from intformer.offline.tables import TextFile

    began = time.monotonic()
    source, target = TextFile(Path(input), column), Path(output)
    _check(source, target)
    embedder = Embedder(
        library,
        source.column,
        prompt_name=prompt_name,
        batch_tokens=batch_tokens,
        threads=threads,
    )
    rows, about = source.count(), source.path.stat()
    parts = Parts(
        target,
        {
            "input": [str(source.path.resolve()), about.st_size, about.st_mtime_ns],
            "column": source.column,
            "library": embedder.library.footer.build_id.hex(),
            "prompt_name": prompt_name,
            "part_rows": part_rows,
        },
    )
    with parts.opened():
        resumed = min(parts.done * part_rows, rows)
        work = _worked(embedder, source, parts, part_rows)
        for _ in progress(work, "embedding", total=rows - resumed):
            pass
        parts.join()
    return Embedded(rows, resumed, embedder.channels, time.monotonic() - began)


def _check(source: "TextFile", target: Path) -> None:
    """Raise IntformerError unless the output can be written, and is not the input."""
    if target.suffix.lower() != ".parquet":
        raise IntformerError("not a .parquet file", where=str(target), hint="name one to write")
    if target.exists() and target.samefile(source.path):
        raise IntformerError("input and output are one file", where=str(target))
    if VECTORS in source.columns:
        raise IntformerError(
            f"there is a column {VECTORS!r} already", where=str(source.path), hint="rename it"
        )


def _worked(
    embedder: Embedder, source: "TextFile", parts: "Parts", part_rows: int
) -> Iterator[None]:
    """Embed and keep what is not done, a part after the other; yield at every row."""
    import pyarrow as pa

    first = parts.done * part_rows
    for table in source.tables(part_rows, first):
        found = []
        try:
            for vector in embedder.each(source.texts(table)):
                found.append(vector)
                yield
        except IntformerError as error:  # its number counts from the first row of the part
            where = f"{source.path}, counted from row {first}"
            raise IntformerError(error.what, where=where, hint=error.hint) from error
        flat = pa.array(np.concatenate(found))
        column = pa.FixedSizeListArray.from_arrays(flat, embedder.channels)
        parts.add(table.append_column(VECTORS, column))
        first += part_rows
