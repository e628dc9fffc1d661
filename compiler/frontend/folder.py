"""Files of one model directory, opened without leaving it and without hanging.

A model directory is input from outside: its file names come from JSON inside it, and its entries
may be links, pipes or devices. Whatever reads one goes through `Folder`, which refuses by name
everything that is not a regular file inside the directory. One kind of link may leave it: in the
download cache of huggingface_hub, `models--ORG--NAME/snapshots/REVISION/FILE` points to
`models--ORG--NAME/blobs/HASH`.
"""

import json
import os
import re
import stat
from pathlib import Path

from intformer.errors import CheckpointError

MOST_BYTES = 256 << 20  # of a file that is read whole; the largest tokenizer.json known has 33 MB
MOST_JSON_BYTES = 16 << 20  # of any other JSON file
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Folder:
    """A directory whose files are read by name."""

    def __init__(self, path: str | Path):
        """Take the directory; it need not exist until a file is asked for."""
        self.path = Path(path)

    def file(self, name: str, *, named_by: str | None = None) -> Path | None:
        """Return the path of a regular file inside the directory, None where there is none.

        name      relative to the directory, with "/" between its parts
        named_by  the file that names it, for errors

        Raises CheckpointError for a name that leaves the directory, for a link that does, and for
        what is not a regular file.
        """
        where = named_by or str(self.path)
        if not _is_name(name):
            raise CheckpointError(f"{shown(name)} is not a file name", where=where)
        path = self.path / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(
                f"file name {shown(name)} leaves the model directory",
                where=where,
                hint="files of a model lie inside its directory",
            )
        try:
            if not os.path.lexists(path):
                return None
            real, root = Path(os.path.realpath(path)), Path(os.path.realpath(self.path))
            if not (real.is_relative_to(root) or _is_cached_blob(real, root)):
                raise CheckpointError(
                    f"{shown(name)} is a link to a file outside the model directory",
                    where=str(path),
                    hint="replace the link by a copy of the file",
                )
            mode = os.stat(path).st_mode
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read it: {reason(error)}", where=str(path)) from error
        if not stat.S_ISREG(mode):
            kind = next((kind for test, kind in KINDS if test(mode)), "a special file")
            raise CheckpointError(f"{shown(name)} is {kind}, not a regular file", where=str(path))
        return path

    def read(self, name: str, most: int = MOST_BYTES) -> bytes | None:
        """Return the bytes of a file, None where there is none; raise above `most` bytes."""
        file = self.file(name)
        return None if file is None else read_regular(file, most)

    def json(self, name: str, kind: type | None = None):
        """Return a parsed JSON file, None where there is none.

        kind  dict or list: what its top level must be
        """
        data = self.read(name, MOST_JSON_BYTES)
        if data is None:
            return None
        where = str(self.path / name)
        value = parse_json(data, where)
        if kind is not None and not isinstance(value, kind):
            wanted = {dict: "an object", list: "a list"}[kind]
            raise CheckpointError(f"{name} is not {wanted}", where=where)
        return value


def read_regular(file: Path, most: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file of at most `most` bytes; opening it never waits."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as stream:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                raise CheckpointError("not a regular file", where=str(file))
            if about.st_size > most:
                raise CheckpointError(
                    f"the file has {about.st_size} bytes, more than {most}", where=str(file)
                )
            return stream.read(most)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read it: {reason(error)}", where=str(file)) from error


def parse_json(data: bytes, where: str):
    """Return parsed JSON; raise CheckpointError for anything else, however deep or long."""
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise CheckpointError("not valid JSON: nested too deep", where=where) from error
    except (ValueError, MemoryError) as error:  # UnicodeDecodeError, integers of 5000 digits
        raise CheckpointError(f"not valid JSON: {reason(error)}", where=where) from error


def shown(value, most: int = 80) -> str:
    """Return a value for an error message, shortened."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return "a huge integer"
    return shortened(
        repr(value) if isinstance(value, str | bool | int | float | None) else "...", most
    )


def shortened(text: str, most: int = 80) -> str:
    """Return a text of at most `most` characters."""
    half = (most - 3) // 2  # both ends say most: of a path, of a class in its package
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, its type where it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _is_name(name) -> bool:
    if not isinstance(name, str) or not Path(name).parts or "\0" in name:
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _is_cached_blob(real: Path, root: Path) -> bool:
    """Say whether `real` is a blob of the huggingface_hub cache whose snapshot holds `root`."""
    for snapshot in (root, *root.parents):
        snapshots, repository = snapshot.parent, snapshot.parent.parent
        if snapshots.name == "snapshots" and repository.name.startswith("models--"):
            return real.parent == repository / "blobs" and bool(HASH.fullmatch(real.name))
    return False
