"""Files of texts, as `run`, `--calibrate`, `verify --texts` and `bench --data` take them."""

import codecs
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from intformer.errors import IntformerError

SINGLE_COLUMNS = ("sentence", "text")
PAIR_COLUMNS = (  # the first pair that a header names wins over single columns
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("query", "passage"),
    ("question", "context"),
    ("question", "sentence"),
)
HINT = "a text per line, or two with a tab between them; or a TSV whose header names its columns"

Text = tuple[str, ...]  # (text,) or (text, second text)


def read_texts(file: str | Path) -> list[Text]:
    """Return the texts of a file; raise IntformerError naming file and line (see texts_in)."""
    with opened(file) as lines:
        return list(texts_in(lines, str(file)))


def opened(file: str | Path) -> BinaryIO:
    """Open a regular file of texts; raise IntformerError naming it."""
    path = Path(file)
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise IntformerError("not a regular file", where=str(path), hint=HINT)
        return path.open("rb")
    except OSError as error:
        raise IntformerError(
            f"cannot read the texts: {error.strerror}", where=str(path), hint=HINT
        ) from error


def texts_in(lines: Iterable[bytes], where: str) -> Iterator[Text]:
    """Yield (text,) or (text, second text) of every line that is not blank, as they are read.

    lines  of UTF-8, as a binary file yields them: they end at "\\n" or "\\r\\n" alone
    where  the file, for errors

    A first line of several columns, one of them in SINGLE_COLUMNS or two in PAIR_COLUMNS, is the
    header of a TSV. Without one, a tab in every line separates two texts; lines without any are
    single texts.
    """
    columns = count = None
    for number, data in enumerate(lines, 1):
        here = f"{where}, line {number}"
        line = _decoded(data.removeprefix(codecs.BOM_UTF8) if number == 1 else data, here)
        if number == 1 and (columns := header_columns(line)):
            continue
        if not line.strip():
            continue
        if columns:
            yield _picked(line, columns, here)
            continue
        parts = tuple(part.strip() for part in line.split("\t"))
        count = count or len(parts)
        if len(parts) > 2:
            what = f"{len(parts)} columns and no header that names them"
            raise IntformerError(what, where=here, hint=HINT)
        if len(parts) != count:
            raise IntformerError("some lines have a tab, some have none", where=here, hint=HINT)
        yield parts


def _decoded(data: bytes, where: str) -> str:
    """Return a line without its end."""
    try:
        line = data.decode()
    except UnicodeDecodeError as error:
        raise IntformerError(
            f"not UTF-8: byte {data[error.start]:#04x}", where=where, hint=HINT
        ) from error
    if "\0" in line:
        raise IntformerError("a NUL byte: not text", where=where, hint=HINT)
    return line.removesuffix("\n").removesuffix("\r")


def header_columns(line: str) -> tuple[int, ...] | None:
    """Return which columns of a TSV hold texts; None where the line is no header."""
    names = [name.strip().lower() for name in line.split("\t")]
    if len(names) < 2:
        return None
    for pair in PAIR_COLUMNS:
        if all(name in names for name in pair):
            return tuple(names.index(name) for name in pair)
    single = next((name for name in SINGLE_COLUMNS if name in names), None)
    return None if single is None else (names.index(single),)


def _picked(line: str, columns: tuple[int, ...], where: str) -> Text:
    cells = line.split("\t")
    if len(cells) <= max(columns):
        raise IntformerError(
            f"{len(cells)} columns, the header names {max(columns) + 1} or more", where=where
        )
    return tuple(cells[c].strip() for c in columns)


def text_lines(text: str) -> list[str]:
    """Return the lines of a text file, which end at "\\n" or "\\r\\n" alone.

    str.splitlines also ends a line at what may be inside a sentence: U+0085, U+2028, form feed.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]
