"""Share of peak that a model of ARM chips predicts: `python -P benchmarks/inner_loops.py`.

The innermost loop of a matrix product of MiniLM-L6 goes through llvm-mca, as does a loop of as many
products that wait for nothing: the peak of the same model. The share is that of the loop alone,
with all data in the first-level cache; no chip is measured. Needs llvm-mca 19 or newer (Debian:
apt install llvm-19): older ones take every Cortex and Neoverse for a Cortex-A57.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import tvm

from intformer import pipeline
from intformer.backends.targets import TARGETS
from intformer.frontend import import_model
from intformer.frontend.shapes import random_model, random_sequences
from intformer.ir.model import IntModel

PRODUCTS = {"aarch64-i8mm": "smmla", "aarch64-dotprod": "sdot"}  # target -> instruction
CHIPS = {  # as llvm-mca calls them; -> targets that they run
    "neoverse-n1": ("aarch64-dotprod",),
    "neoverse-v1": ("aarch64-i8mm", "aarch64-dotprod"),
    "neoverse-n2": ("aarch64-i8mm", "aarch64-dotprod"),
}
SHAPE, TURNS = "minilm-l6", 1000
LABEL = re.compile(r"(\.LBB\w+):")
BACK = re.compile(r"\s+(?:b\.\w+|cbn?z|tbn?z)\s.*?(\.LBB\w+)$")


def imported() -> IntModel:
    """Return the model, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        source = random_model(SHAPE, Path(folder))
        model = import_model(source, calibrate=random_sequences(SHAPE)[:8], method="minmax")
    return pipeline.pruned(model)


def listing(model: IntModel, target: str) -> str:
    """Return the assembly of a dense layer's kernel."""
    spec = TARGETS[target]
    program = pipeline.arranged(model, spec.backend)
    kernels = pipeline.lowered(program, spec).scheduled.functions
    dense = next(var for var in kernels if var.name_hint.startswith("dense_"))
    return spec.backend.listing(spec, tvm.IRModule({dense: kernels[dense]}))


def innermost(text: str, product: str) -> list[str]:
    """Return the instructions of the loop without loops inside that has the most products."""
    lines = [line for line in text.splitlines() if not re.match(r"\s*(//|\.[a-z])", line)]
    starts = {m[1]: i for i, line in enumerate(lines) if (m := LABEL.match(line))}
    found = []
    for i, line in enumerate(lines):
        if (m := BACK.match(line)) and starts.get(m[1], i) < i:
            body = lines[starts[m[1]] + 1 : i + 1]
            if not any(LABEL.match(inner) for inner in body):
                found.append(body)
    return max(found, key=lambda body: counted(body, product))


def counted(body: list[str], product: str) -> int:
    """Return how many products a loop has."""
    return sum(line.split()[0] == product for line in body if line.strip())


def cycles(program: str, chip: str, body: list[str]) -> float:
    """Return the cycles of one turn of a loop, as llvm-mca has it."""
    with tempfile.NamedTemporaryFile("w", suffix=".s") as file:
        file.write("\n".join(body) + "\n")
        file.flush()
        command = [program, "-mtriple=aarch64", f"-mcpu={chip}", f"-iterations={TURNS}"]
        done = subprocess.run([*command, file.name], capture_output=True, text=True, check=True)
    return int(re.search(r"Total Cycles:\s+(\d+)", done.stdout)[1]) / TURNS


def main() -> None:
    names = [f"llvm-mca-{version}" for version in range(30, 18, -1)]
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        sys.exit(f"error: no llvm-mca 19 or newer - {Path(__file__).name} - apt install llvm-19")
    model = imported()
    loops = {target: innermost(listing(model, target), op) for target, op in PRODUCTS.items()}
    print(f"{Path(program).name}; predictions, not measurements")
    for chip, targets in CHIPS.items():
        for target in targets:
            product = PRODUCTS[target]
            count = counted(loops[target], product)
            alone = [f"\t{product}\tv{8 + i}.4s, v0.16b, v1.16b" for i in range(count)]
            share = cycles(program, chip, alone) / cycles(program, chip, loops[target])
            print(f"{chip:12} {target:16} {product:6} {count} a turn, {share:.0%} of peak")


if __name__ == "__main__":
    main()
