"""A library that another program runs: an emulator of its chip, or any command that starts ours."""

import os
import shlex
import subprocess
import tempfile
import weakref
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from intformer.backends import targets
from intformer.errors import LibraryError
from intformer.link import program
from intformer.runtime import Library
from intformer.runtime.library import Observer

RUN, THREADS, VARIANT = range(3)  # requests of link/programs/serve.c


class Via(Library):
    """A library of any machine, run by a small program that a command starts.

    command  words before the program, such as `qemu-aarch64 -cpu max`

    What of Library needs the loaded code (its C table) asks the program, in a process that lives as
    long as this object.
    """

    foreign = ""

    def __init__(self, path: str | os.PathLike, command: str):
        """Read the library's file; the program is compiled and started when it is first asked."""
        super().__init__(path)
        try:
            self.command = shlex.split(command)
        except ValueError as error:
            raise LibraryError(f"{command!r} is not a command: {error}", where="--via") from None

    def program(self, folder: Path) -> Path:
        """Return the program, made in a folder that stays as long as this object."""
        family = targets.of_machine(self.image.machine, str(self.path))
        return program.build(folder / "serve", "serve.c", family)

    @cached_property
    def _process(self) -> subprocess.Popen:
        holder = tempfile.TemporaryDirectory(prefix="intformer-via")
        started = self.program(Path(holder.name))
        words = [*self.command, str(started), str(self.path.absolute())]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        try:
            process = subprocess.Popen(words, env=self._environment(), **pipes)
        except OSError as error:
            raise LibraryError(
                f"cannot start {words[0]!r}: {error.strerror}", where="--via"
            ) from error
        weakref.finalize(self, _end, process, holder)
        self.__dict__["_process"] = process
        self._line("open")
        return process

    def _environment(self) -> dict[str, str]:
        """Return the environment of the command: qemu finds the C library where Debian puts it."""
        family = targets.of_machine(self.image.machine, str(self.path))
        root = Path("/usr") / family.zig_triple.partition(".")[0]
        return {**({"QEMU_LD_PREFIX": str(root)} if root.is_dir() else {}), **os.environ}

    def open(self) -> "Via":
        """Start the program; return the library. Raises LibraryError where it does not start."""
        _ = self._process
        return self

    @property
    def threads(self) -> int:
        """Threads of one run."""
        return int(self._asked(THREADS, [-1]))

    def set_threads(self, threads: int) -> None:
        """Set the threads of one run."""
        self._asked(THREADS, [threads])

    @property
    def device(self) -> None:
        """There is none: programs are for CPUs."""
        return None

    @property
    def variant(self) -> str | None:
        """The variant in use; None where none runs."""
        name = self._asked(VARIANT, [-1])
        return None if name == "-" else name

    def set_variant(self, name: str | None) -> None:
        """Run this variant from now on; None: the one that the library chooses."""
        text = (name or "").encode()
        self._asked(VARIANT, [len(text)], text)

    def run(
        self,
        input_ids: np.ndarray,
        cu_seqlens: np.ndarray,
        token_type_ids: np.ndarray | None = None,
        position_ids: np.ndarray | None = None,
        positions: np.ndarray | None = None,
        observer: Observer | None = None,
    ) -> np.ndarray:
        """Compute a batch of packed sequences, see Library.run; steps have no numbers here."""
        count = 0 if positions is None else len(positions)
        head = [observer is not None, len(input_ids), len(cu_seqlens) - 1, count]
        head += [token_type_ids is not None, position_ids is not None]
        arrays = (input_ids, cu_seqlens, token_type_ids, position_ids, positions)
        data = [np.asarray(a, np.int32).tobytes() for a in arrays if a is not None]
        self._send(RUN, head, *data)
        while True:
            kind, *name, rows, width, dtype = self._line().split()
            rows, width = int(rows), int(width)
            size = rows * width * np.dtype(dtype).itemsize
            raw = self._process.stdout.read(size)
            if len(raw) != size:
                raise self._ended()
            array = np.frombuffer(raw, dtype).reshape(rows, width)
            if kind == "result":
                return array
            observer(-1, *name, array)

    # -- requests ----

    def _send(self, kind: int, numbers: Iterable[int], *more: bytes) -> None:
        pipe: BinaryIO = self._process.stdin
        try:
            pipe.write(b"".join([np.array([kind, *numbers], np.int32).tobytes(), *more]))
            pipe.flush()
        except (BrokenPipeError, ValueError):  # it ended; before or now
            raise self._ended() from None

    def _asked(self, kind: int, numbers: Iterable[int], *more: bytes) -> str:
        self._send(kind, numbers, *more)
        return self._line("threads" if kind == THREADS else "variant")

    def _line(self, word: str = "") -> str:
        """Return a line of the answer, without the word that it must start with."""
        line = self._process.stdout.readline().decode(errors="replace")
        if line.startswith("error "):
            _, code, what = line.rstrip("\n").split(" ", 2)
            fault = LibraryError(what, where=str(self.path))
            fault.code = int(code)
            raise fault
        if not line.endswith("\n") or not line.startswith(word):
            raise self._ended()
        return line.removeprefix(word).strip()

    def _ended(self) -> LibraryError:
        """Return the error of a program that answers no more, the same from then on."""
        process = self._process
        if process.stdin.closed:
            return self._last
        with suppress(BrokenPipeError):  # of what it did not read
            process.stdin.close()
        process.kill()
        said = process.stderr.read().decode(errors="replace").strip().splitlines()
        code = process.wait()
        why = said[-1] if said else f"exit code {code}" if code >= 0 else f"signal {-code}"
        self._last = LibraryError(
            f"{shlex.join(self.command)!r} does not run the library: {why}",
            where=str(self.path),
            hint="is it an emulator of the library's machine, with the C library of that?",
        )
        return self._last


def _end(process: subprocess.Popen, folder: tempfile.TemporaryDirectory) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        try:
            pipe.close()
        except OSError:
            pass
    folder.cleanup()
