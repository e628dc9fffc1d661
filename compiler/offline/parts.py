"""What is done of a file: a folder beside it, with a part for every so many rows.

A part is written under another name and then renamed, so that one that is there is complete. Once
all are, they are joined, the file gets its name and the folder goes. A process that is killed
leaves the folder, and the next one goes on behind its last part.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from intformer.errors import IntformerError


class Parts:
    """The parts of one output.

    output  the file they become
    job     what they are made of and how, as JSON can say it: parts of another job are not gone
            on with
    done    how many are complete
    """

    def __init__(self, output: Path, job: dict):
        """Name them; `opened` looks at what is there."""
        self.output, self.job, self.done = output, job, 0
        self.folder = output.with_name(f".{output.name}.parts")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder or go on with it, locked against other processes."""
        self.folder.mkdir(exist_ok=True)
        lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._go_on()
            yield
        except BlockingIOError:
            raise IntformerError("another process writes it", where=str(self.output)) from None
        finally:
            os.close(lock)

    def _go_on(self) -> None:
        about = self.folder / "job.json"
        if not about.exists() or not self._part(0).exists():  # nothing, or half removed
            for left in self.folder.glob("*.parquet"):
                left.unlink()
        while self._part(self.done).exists():
            self.done += 1
        before = json.loads(about.read_text()) if self.done else self.job
        changed = sorted(key for key in self.job if self.job[key] != before.get(key))
        if changed:
            raise IntformerError(
                f"rows are done already, with another {' and '.join(changed)}",
                where=str(self.folder),
                hint="repeat the command as it was, or remove this folder",
            )
        with _replacing(about) as unfinished:
            unfinished.write_text(json.dumps(self.job))

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:08}.parquet"

    def add(self, table: pa.Table) -> None:
        """Keep the next part."""
        _write(self._part(self.done), [table])
        self.done += 1

    def join(self) -> None:
        """Make the file of all parts, at least one, and remove them."""
        _write(self.output, (parquet.read_table(self._part(i)) for i in range(self.done)))
        shutil.rmtree(self.folder)


def _write(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write tables of one schema, each a row group."""
    with _replacing(path) as unfinished:
        writer = None
        for table in tables:
            writer = writer or parquet.ParquetWriter(unfinished, table.schema)
            writer.write_table(table)
        writer.close()


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give another name beside a file, which takes its place once the block has written it."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    yield unfinished
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)
