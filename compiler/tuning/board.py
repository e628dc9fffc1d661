"""A board that a command reaches: a candidate is a program of its own, and needs no Python there.

`ssh` and its arguments get program and inputs as an archive through the connection. Any other
command is put before the program and finds both where they are: an emulator, or a script.
"""

import io
import shlex
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intformer import scratch
from intformer.backends import targets
from intformer.backends.backend import TargetSpec
from intformer.errors import IntformerError
from intformer.link import build as linker
from intformer.passes.form import Decisions
from intformer.tuning import build as builds
from intformer.tuning.measure import TIMED_OUT, Case, cached_case

SSH = "ssh"
THERE = (  # what the shell there does: a folder of its own, which goes again
    'd=$(mktemp -d) && cd "$d" && tar xf - && ./program case; s=$?; cd / && rm -rf "$d"; exit $s'
)
SOURCE = Path(__file__).with_name("board.c")
FLAGS = ("-std=gnu11", "-O2", "-static", f"-I{linker.SOURCES}")
MARGIN = 0.9  # of the time for a candidate: a process that is killed leaves its command behind


@dataclass(frozen=True)
class Board:
    """A machine behind a command.

    command  words before the program
    """

    command: tuple[str, ...]

    @classmethod
    def parse(cls, command: str) -> "Board":
        """Read a command line; IntformerError where it is none."""
        try:
            words = tuple(shlex.split(command))
        except ValueError as error:
            raise IntformerError(f"{command!r} is not a command: {error}", where="--via") from None
        if not words:
            raise IntformerError("no command", where="--via", hint="such as 'ssh HOST'")
        return cls(words)

    @property
    def about(self) -> str:
        """What provenance says of the CPU."""
        return f"via {self.key}"

    @property
    def key(self) -> str:
        """The command line."""
        return shlex.join(self.command)

    def session(self, timeout: float) -> None:
        """There is none: every candidate is a run of its own."""

    def run(self, program: Path, case: Path, timeout: float) -> str:
        """Run a program on a file and return what it printed; ValueError says why it failed."""
        if Path(self.command[0]).name == SSH:
            words, data = [*self.command, THERE], archive(program, case)
        else:
            words, data = [*self.command, str(program), str(case)], None
        try:
            done = subprocess.run(words, input=data, capture_output=True, timeout=MARGIN * timeout)
        except OSError as error:
            what = f"cannot start {words[0]!r}: {error.strerror}"
            raise IntformerError(what, where="--via") from error
        except subprocess.TimeoutExpired:
            raise ValueError(f"{TIMED_OUT}: not measured within {timeout:g} s") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise ValueError(said[-1] if said else f"exit code {done.returncode}")
        return done.stdout.decode()


def archive(program: Path, case: Path) -> bytes:
    """Return both as a tar file, under the names that THERE has for them."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, path, mode in (("program", program, 0o755), ("case", case, 0o644)):
            about = tarfile.TarInfo(name)
            about.size, about.mode = path.stat().st_size, mode
            with path.open("rb") as file:
                tar.addfile(about, file)
    return data.getvalue()


def compiler(spec: TargetSpec) -> list[str]:
    """Return zig as the compiler of static programs: they run whatever C library is there."""
    return [*linker.musl_compiler(spec.backend), *FLAGS]


def ready(spec: TargetSpec, board: Board, timeout: float) -> dict:
    """Let an empty program run there; IntformerError where that fails."""
    where = f"--via {board.key}"
    if spec.backend.launched:
        raise IntformerError(f"{spec.name} is a GPU", where=where, hint="measure it with --rpc")
    with scratch.folder() as name:
        source, program = Path(name) / "empty.c", Path(name) / "empty"
        source.write_text("int main(void) { return 0; }\n")
        linker.call([*compiler(spec), "-o", str(program), str(source)], Path(name), "compiling")
        try:
            board.run(program, source, timeout)
        except ValueError as error:
            raise IntformerError(f"no program runs there: {error}", where=where) from None
    return {}


def build(form: str, target: str, decisions: Decisions, objects: str) -> str:
    """Compile one kernel and return the path of the program that measures it, see build.build."""
    spec = targets.get(target)
    func = builds.scheduled(form, spec, decisions)
    return builds.link(func, spec, Path(objects), [*compiler(spec), str(SOURCE)], ".board")


def there(
    program: str, path: str, symbol: str, threads: int, board: Board, timeout: float
) -> list[float]:
    """Check a kernel on a board and return the seconds of its fastest batches."""
    file = Path(path).with_suffix(".case")
    if not file.exists():
        file.write_bytes(written(cached_case(path)))
    return [float(line) for line in board.run(Path(program), file, timeout).split()]


def written(case: Case) -> bytes:
    """Return a case as board.c reads it."""

    def numbers(*values: int) -> bytes:
        return np.array(values, "<i8").tobytes()

    parts = [numbers(len(case.arguments))]
    for array in case.arguments:
        code = 0 if array.dtype.kind == "i" else 1
        parts.append(numbers(code, array.dtype.itemsize * 8, array.ndim, *array.shape))
        parts.append(np.ascontiguousarray(array).tobytes())
    parts.append(numbers(len(case.expected)))
    for index, rows in case.expected.items():
        parts.append(numbers(index, *rows.shape))
        parts.append(np.ascontiguousarray(rows, case.arguments[index].dtype).tobytes())
    return b"".join([*parts, numbers(len(case.constants), *case.constants)])
