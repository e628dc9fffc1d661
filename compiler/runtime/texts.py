"""Files of texts, as `run`, `--calibrate`, `verify --texts` and `bench --data` take them."""

import stat
from pathlib import Path

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
    """Return the texts of a file (see parse_texts); raise IntformerError naming file and line."""
    path = Path(file)
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise IntformerError("not a regular file", where=str(path), hint=HINT)
        data = path.read_bytes()
    except OSError as error:
        raise IntformerError(
            f"cannot read the texts: {error.strerror}", where=str(path), hint=HINT
        ) from error
    return parse_texts(decoded(data, str(path)), str(path))


def decoded(data: bytes, where: str) -> str:
    """Return UTF-8 text without its byte order mark; raise IntformerError naming the line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise IntformerError(
            f"not UTF-8: byte {data[error.start]:#04x}", where=f"{where}, line {line}", hint=HINT
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise IntformerError("a NUL byte: not text", where=f"{where}, line {line}", hint=HINT)
    return text


def parse_texts(text: str, where: str) -> list[Text]:
    """Return (text,) or (text, second text) of every line that is not blank.

    where  the file, for errors

    A first line of several columns, one of them in SINGLE_COLUMNS or two in PAIR_COLUMNS, is the
    header of a TSV. Without one, a tab in every line separates two texts; lines without any are
    single texts.
    """
    lines = text_lines(text.removeprefix("\ufeff"))
    columns = header_columns(lines[0]) if lines else None
    first = 1 if columns else 0
    rows = [(i, line) for i, line in enumerate(lines[first:], first + 1) if line.strip()]
    if columns:
        return [_picked(line, columns, f"{where}, line {i}") for i, line in rows]
    found = [tuple(part.strip() for part in line.split("\t")) for _, line in rows]
    for (i, _), parts in zip(rows, found, strict=True):
        if len(parts) > 2:
            raise IntformerError(
                f"{len(parts)} columns and no header that names them",
                where=f"{where}, line {i}",
                hint=HINT,
            )
        if len(parts) != len(found[0]):
            raise IntformerError(
                "some lines have a tab, some have none", where=f"{where}, line {i}", hint=HINT
            )
    return found


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
