"""Files of texts as tables, read a few rows at a time: parquet, CSV, TSV, JSON lines, lines.

Columns of a parquet file and of JSON lines keep their types; those of CSV and TSV are text, so that
no "007" becomes a 7.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pyarrow import csv, json, parquet

from intformer.errors import IntformerError
from intformer.runtime.texts import SINGLE_COLUMNS

Tables = Iterator[pa.Table]
BUFFER = 1 << 20  # bytes that are read ahead of a column
ROWS = 1024  # that are looked at together


class TextFile:
    """A file of texts.

    path     the file; its ending says what it is
    column   of the texts: as asked for, the first of SINGLE_COLUMNS that there is, or the only one
    columns  all of them
    """

    def __init__(self, path: Path, column: str | None):
        """Look at its columns; raise IntformerError naming the file."""
        self.path = path
        self._read = READERS.get(path.suffix.lower())
        if self._read is None:
            raise IntformerError(
                f"a file ending in {path.suffix or 'nothing'!r}",
                where=str(path),
                hint="files end in " + ", ".join(READERS),
            )
        schema = self._first().schema
        self.columns, self.column = schema.names, self._chosen(schema, column)
        kind = schema.field(self.column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise IntformerError(f"column {self.column!r} is {kind}, not text", where=str(path))

    def _first(self) -> pa.Table:
        found = next(self._tables(1), None)
        if found is None:
            raise IntformerError("no texts", where=str(self.path))
        return found

    def _chosen(self, schema: pa.Schema, column: str | None) -> str:
        names = schema.names
        if column is None:
            text = [n for n in SINGLE_COLUMNS if n in names] or (names if len(names) == 1 else [])
            column = text[0] if text else None
        if names.count(column) == 1:
            return column
        raise IntformerError(
            "which column has the texts?" if column is None else f"no such column: {column!r}",
            where=str(self.path),
            hint="pass --column, one of " + ", ".join(names),
        )

    def tables(self, rows: int, start: int = 0) -> Tables:
        """Yield the rows from `start` on, in tables of `rows` of them; the last may be shorter."""
        for table in self._tables(rows):
            if start < table.num_rows:
                yield table.slice(start)
            start = max(start - table.num_rows, 0)

    def texts(self, table: pa.Table) -> list[str]:
        """Return the texts of some rows."""
        with _named(self.path):
            return table.column(self.column).to_pylist()

    def count(self) -> int:
        """Return the number of rows; raise IntformerError for one without a text."""
        total = 0
        for table in self._tables(ROWS, [self.column]):
            texts = table.column(self.column)
            if texts.null_count:
                row = total + texts.is_null().to_pylist().index(True)
                raise IntformerError(
                    f"row {row} has no text", where=f"{self.path}, column {self.column!r}"
                )
            total += table.num_rows
        return total

    def _tables(self, rows: int, columns: list[str] | None = None) -> Tables:
        with _named(self.path):
            yield from _rebatched(self._read(self.path, rows, columns), rows)


def _rebatched(tables: Tables, rows: int) -> Tables:
    """Yield the same rows in tables of `rows` of them."""
    waiting, count = [], 0
    for table in tables:
        start = 0
        while table.num_rows - start >= rows - count:
            stop = start + rows - count
            yield pa.concat_tables([*waiting, table.slice(start, stop - start)])
            waiting, count, start = [], 0, stop
        if start < table.num_rows:
            waiting.append(table.slice(start))
            count += table.num_rows - start
    if waiting:
        yield pa.concat_tables(waiting)


def _parquet(path: Path, rows: int, columns: list[str] | None) -> Tables:
    with parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
        for batch in file.iter_batches(rows, columns=columns, use_threads=False):
            yield pa.table(batch)


def _separated(path: Path, columns: list[str] | None, parse: csv.ParseOptions) -> Tables:
    with csv.open_csv(path, parse_options=parse) as found:
        types = dict.fromkeys(found.schema.names, pa.string())
    convert = csv.ConvertOptions(column_types=types, include_columns=columns)
    with csv.open_csv(path, parse_options=parse, convert_options=convert) as found:
        yield from map(pa.table, found)


def _csv(path: Path, rows: int, columns: list[str] | None) -> Tables:
    return _separated(path, columns, csv.ParseOptions(newlines_in_values=True))


def _tsv(path: Path, rows: int, columns: list[str] | None) -> Tables:
    return _separated(path, columns, csv.ParseOptions(delimiter="\t", quote_char=False))


def _json_lines(path: Path, rows: int, columns: list[str] | None) -> Tables:
    with json.open_json(path) as found:
        yield from map(pa.table, found)


def _lines(path: Path, rows: int, columns: list[str] | None) -> Tables:
    """A text per line, which ends at "\\n" or "\\r\\n" alone; blank lines count as none."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        texts = filter(None, map(str.strip, file))
        while some := list(islice(texts, rows)):
            yield pa.table({"text": pa.array(some, pa.string())})


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of reading name the file."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise IntformerError(f"cannot read the texts: {error}", where=str(path)) from error


# file, rows of a table that suit the reader, columns that are needed (None: all) -> tables
READERS: dict[str, Callable[[Path, int, list[str] | None], Tables]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".txt": _lines,
}
