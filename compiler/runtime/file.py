"""A compiled library as a file: its metadata and sections, read without running anything in it."""

import json
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from intformer.errors import LibraryError
from intformer.runtime import footer
from intformer.runtime.image import Image, own_machine

NOTE = b"intformer"  # owner of the note that says where plan_table is (link/build.py)
TABLE = struct.Struct("<II3Q")  # head of plan_table: size, zero, api, blob, bytes of the blob
INDEX_MAGIC = b"IFINDEX1"
INDEX = struct.Struct("<8sQ")  # head of the blob: magic, sections
ENTRY = struct.Struct("<QQQ")  # of each: where its name is, its first byte, its size


def find_data(image: Image) -> tuple[int, int, int, int]:
    """Return the addresses of plan_table, of the table of functions and of the blob; its bytes."""
    found = [(at, raw) for at, raw in image.notes(NOTE) if len(raw) == 8]
    if len(found) != 1:
        raise LibraryError(
            f"not an intformer library: {len(found)} intformer notes, 1 expected",
            where=image.where,
            hint="compile the model again",
        )
    at, raw = found[0]
    table = at + struct.unpack("<q", raw)[0] & (1 << 64) - 1  # the note holds it relative to itself
    _, _, api, blob, size = TABLE.unpack(image.read(table, TABLE.size))
    return table, api, blob, size


class LibraryFile:
    """A compiled library for any chip, mapped read-only; none of its code runs.

    path      the file
    footer    what its last bytes say
    image     the file as the loader would map it
    index     section -> (offset in the blob, bytes), as the library itself reads it
    metadata  what the compiler wrote about it (section metadata.json)
    """

    def __init__(self, path: str | os.PathLike, *, whole: bool = True):
        """Check the file and read its index; raise LibraryError.

        whole  False: leave checking all sections but metadata.json to the caller, see footer.Parts
        """
        self.path = Path(path)
        self.footer, self._unchecked = footer.check_but_data(self.path, whole=whole)
        if self.footer.abi < footer.OLDEST_ABI:
            raise LibraryError(
                f"library has interface version {self.footer.abi}, this intformer reads "
                f"{footer.OLDEST_ABI} and newer",
                where=str(self.path),
                hint="compile the model again",
            )
        with self.path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self.image = Image(memoryview(self._data)[: self.footer.elf], str(self.path))
            self.table, self.api, self.blob, self.blob_size = find_data(self.image)
            self._blob = self.image.view(self.blob, self.blob_size)
            self.index = self._read_index()
        except struct.error as error:
            raise self._fault(f"damaged tables: {error}") from error
        self.metadata: dict = self.json("metadata.json")

    def _fault(self, what: str) -> LibraryError:
        return LibraryError(what, where=str(self.path), hint="compile the model again")

    def _read_index(self) -> dict[str, tuple[int, int]]:
        blob, size = self._blob, self.blob_size
        magic, count = INDEX.unpack(blob[: INDEX.size])
        names = INDEX.size + ENTRY.size * count
        if magic != INDEX_MAGIC or names > size:
            raise self._fault("the index of its sections is damaged")
        index, end = {}, names
        spans = []
        for name_at, offset, length in ENTRY.iter_unpack(blob[INDEX.size : names]):
            name_end = bytes(blob[name_at : name_at + 4096]).find(b"\0")
            if not names <= name_at < size or name_end < 0:
                raise self._fault("a section's name lies outside the index")
            name = bytes(blob[name_at : name_at + name_end]).decode(errors="replace")
            end = max(end, name_at + name_end + 1)
            if offset + length >= size:  # a zero byte follows each
                raise self._fault(f"section {name!r} lies outside the data")
            if name in index:
                raise self._fault(f"section {name!r} is there twice")
            index[name] = offset, length
            spans.append((offset, offset + length, name))
        before, last = end, "the index"
        for start, stop, name in sorted(spans):
            if start < before:
                raise self._fault(f"section {name!r} overlaps {last}")
            before, last = stop, f"section {name!r}"
        return index

    @contextmanager
    def _reading(self, section: str) -> Iterator[None]:
        """Make what goes wrong with the JSON of a section an error of the library."""
        try:
            yield
        except (
            AttributeError,
            IndexError,
            KeyError,
            OverflowError,
            TypeError,
            ValueError,
        ) as error:
            what = f"{type(error).__name__} {str(error)[:200]!r}"
            raise self._fault(f"section {section!r} is damaged: {what}") from error

    def sections(self) -> list[str]:
        """Return the names of all sections."""
        return list(self.index)

    def _view(self, name: str) -> np.ndarray:
        if name not in self.index:
            raise LibraryError(f"no section {name!r}", where=str(self.path))
        offset, size = self.index[name]
        return np.frombuffer(self._blob[offset : offset + size], np.uint8)

    def section(self, name: str) -> bytes:
        """Return the bytes of a section, such as "plan.json" or "files/tokenizer.json"."""
        return self._view(name).tobytes()

    def json(self, name: str) -> dict:
        """Return a JSON section as a dict."""
        try:
            found = json.loads(self.section(name))
        except (ValueError, RecursionError) as error:
            raise self._fault(f"section {name!r} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise self._fault(f"section {name!r} is not a JSON object")
        return found

    def graph(self) -> dict:
        """Return the IntModel's graph, as IntModel.to_json made it."""
        return self.json("graph.json")

    def files(self) -> dict[str, bytes]:
        """Return the tokenizer and config files carried along."""
        prefix = "files/"
        names = [name for name in self.sections() if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.section(name) for name in names}

    @cached_property
    def plan(self) -> dict:
        """Steps and buffers as the library runs them (section plan.json)."""
        return self.json("plan.json")

    @cached_property
    def packing(self) -> dict:
        """Dtype, shape and packing of every constant (section packing.json)."""
        return self.json("packing.json")

    def tensor(self, name: str) -> np.ndarray:
        """Return a packed constant: a read-only view of the mapped file."""
        about = self.packing.get(name)
        if about is None:
            raise LibraryError(f"no constant {name!r}", where=str(self.path))
        with self._reading("packing.json"):
            return self._view(f"constants/{name}").view(about["dtype"]).reshape(about["shape"])

    def logical(self, name: str, data: np.ndarray) -> np.ndarray:
        """Return a buffer as the IntModel means it.

        data    physical [rows, width], as an observer sees it
        result  [rows, channels], zero point removed; int8 where the buffer stores uint8
        """
        with self._reading("plan.json"):
            about = self.plan["buffers"][name]
            columns = about["channel_map"]
            data = data[:, : about["channels"]] if columns is None else data[:, columns]
            if about["zero_point"]:
                data = (data.astype(np.int32) - about["zero_point"]).astype(np.int8)
            return data

    @property
    def foreign(self) -> str:
        """Why no process of this machine can load it: it is for another kind of CPU; else ""."""
        own = own_machine()
        if own in (None, self.image.machine):
            return ""
        with self._reading("metadata.json"):
            target = self.metadata["target"]
        return f"library is for {target}, ELF machine {self.image.machine}; this process runs {own}"

    @property
    def on_device(self) -> bool:
        """True if the kernels run on a device with memory of its own, which a driver loads."""
        with self._reading("metadata.json"):
            return any(v["arch"] for v in self.metadata["variants"])

    @property
    def variants(self) -> dict[str, list[str]]:
        """CPU features that each variant of the kernels needs, the fastest variant first."""
        with self._reading("metadata.json"):
            return {v["name"]: v["cpu_features"] for v in self.metadata["variants"]}
