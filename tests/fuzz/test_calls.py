"""The C runtime and the opener, given random bytes under the address and undefined sanitizers.

libFuzzer looks for new paths where it has clang and FUZZ_CALLS is set (`make fuzz`); else driver.c
makes the bytes, for gcc. Both begin with what corpus/ holds.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from intformer.link import build as library
from intformer_testing import fuzz, sanitized, toy

HERE = Path(__file__).parent
CALLS = fuzz.setting("CALLS", 60_000)
ROWS = ("token", "sequence", "position")
CLANG = next(filter(shutil.which, ("clang", *(f"clang-{n}" for n in range(22, 13, -1)))), None)
GUIDED = CLANG is not None and "FUZZ_CALLS" in os.environ
SECONDS = 3600


def sanitizes(folder: Path) -> bool:
    """Whether the C compiler has the sanitizers' libraries."""
    (folder / "main.c").write_text("int main(void) { return 0; }")
    command = ["cc", *sanitized.flags("address"), "main.c", "-o", "main"]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Callable[..., Path]:
    """Return what builds a toy library: (rows, sanitizers, more files) -> path."""
    folder = tmp_path_factory.mktemp("fuzz")
    if not GUIDED and not (shutil.which("cc") and sanitizes(folder)):
        pytest.skip("needs cc with the address sanitizer")
    variant = library.Variant("x86-64", [toy.object_file(folder)])

    def make(rows: str, sanitizers: str, **files: bytes) -> Path:
        path = folder / f"{rows}-{sanitizers}-{len(files)}.so"
        model = toy.model()
        model.files.update(files)
        with pytest.MonkeyPatch.context() as patch:
            sanitized.patch(patch, sanitizers)
            if sanitizers == "fuzzer":
                patch.setattr(library, "compiler", lambda _=None: [CLANG])
            return library.build(toy.plan(rows=rows), [variant], model, path, target="x86-64")

    return make


def program(folder: Path, harness: str, path: Path, **macros: int) -> Path:
    """Compile a harness for a library."""
    defined = {"LIBRARY": f'"{path}"', **macros}
    if GUIDED:
        command = [CLANG, "-fsanitize=fuzzer", "-rdynamic"]
    else:
        command = ["cc", HERE / "driver.c"]
    command += [*sanitized.flags("address"), "-O1", "-Wall", "-Werror"]
    command += [f"-I{library.SOURCES}", HERE / harness]
    command += [library.SOURCES / "intformer_open.c", "-lpthread", "-ldl", "-o", folder / "main"]
    command += [f"-D{name}={value}" for name, value in defined.items()]
    subprocess.run(command, check=True)
    return folder / "main"


def corpus(folder: Path, name: str) -> list[Path]:
    """Write the inputs of corpus/NAME.hex, one a line, to files."""
    folder.mkdir()
    files = []
    for number, line in enumerate((HERE / "corpus" / f"{name}.hex").read_text().split()):
        files.append(folder / str(number))
        files[-1].write_bytes(bytes.fromhex(line))
    return files


def called(harness: Path, files: list[Path], count: int) -> int:
    """Run a harness; return the number of calls that it says it has made."""
    if GUIDED:
        options = [f"-runs={count}", f"-seed={fuzz.SEED + 1}", "-max_len=512", "-timeout=20"]
        arguments = [*options, "-print_final_stats=1", files[0].parent]
    else:
        arguments = [str(fuzz.SEED), str(count), *files]
    done = subprocess.run(
        [harness, *arguments], capture_output=True, text=True, timeout=SECONDS, cwd=harness.parent
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    said = re.search(r"number_of_executed_units: (\d+)|^(\d+) calls", done.stdout + done.stderr)
    return int(said[1] or said[2])


@pytest.mark.parametrize("rows", ROWS)
def test_calls(rows, build, tmp_path):
    """Refused where the header says so, else equal to the sequences one by one."""
    path = build(rows, "fuzzer" if GUIDED else "address")
    sizes = {"VOCAB": toy.VOCAB, "TYPES": toy.TYPES, "LENGTH": toy.LENGTH}
    harness = program(tmp_path, "calls.c", path, ROWS=ROWS.index(rows), **sizes)
    count = CALLS // len(ROWS)
    assert called(harness, corpus(tmp_path / "corpus", "calls"), count) >= count


def test_the_opener(build, tmp_path):
    """Nothing that was altered is loaded. The file has parts of data for the library to check."""
    path = build("token", "", big=os.urandom(300_000))
    harness = program(tmp_path, "opener.c", path)
    count = CALLS // 60
    assert called(harness, corpus(tmp_path / "corpus", "opener"), count) >= count
