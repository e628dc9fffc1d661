"""Innermost loops of matrix products: ours and those of others, as a model of a chip sees them.

The share of peak is that of a loop alone, with all data in the first-level cache, against as many
products that wait for nothing, on the same model.
"""

import re
import subprocess
import sys
from pathlib import Path

import tvm

from intformer import pipeline
from intformer.backends.targets import TARGETS
from intformer.ir.model import IntModel
from intformer_edge import chips
from intformer_edge.pieces import Profile

PRODUCTS = {"aarch64-i8mm": "smmla", "aarch64-dotprod": "sdot"}  # target -> instruction
CHIPS = {  # as llvm-mca calls them -> targets that they run
    "neoverse-n1": ("aarch64-dotprod",),
    "neoverse-v1": ("aarch64-i8mm", "aarch64-dotprod"),
    "neoverse-n2": ("aarch64-i8mm", "aarch64-dotprod"),
    "cortex-a55": ("aarch64-dotprod",),
}
KLEIDIAI = {  # its products of int8 with int8, one scale per column
    "aarch64-dotprod": "4x4_qsi8cxp4x4_16x4_neon_dotprod.c",
    "aarch64-i8mm": "4x8_qsi8cxp4x8_16x4_neon_i8mm_asm.S",
}
FOLDER = "kai/ukernels/matmul/matmul_clamp_f32_qai8dxp_qsi8cxp"
LABEL = re.compile(r"(\.LBB\w+):")
BACK = re.compile(r"\s+(?:b\.\w+|cbn?z|tbn?z)\s.*?(\.LBB\w+)$")
LINE = re.compile(r"\s*([0-9a-f]+):\s+(.*)")
BACK_TO = re.compile(r"(?:b\.\w+|cbn?z|tbn?z)\s.*?0x([0-9a-f]+) <")


def ours(model: IntModel, target: str) -> list[str]:
    """Return the loop of a dense layer's kernel."""
    spec = TARGETS[target]
    program = pipeline.arranged(model, spec.backend)
    kernels = pipeline.lowered(program, spec).scheduled.functions
    dense = next(var for var in kernels if var.name_hint.startswith("dense_"))
    text = spec.backend.listing(spec, tvm.IRModule({dense: kernels[dense]}))
    lines = [line for line in text.splitlines() if not re.match(r"\s*(//|\.[a-z])", line)]
    starts = {m[1]: i for i, line in enumerate(lines) if (m := LABEL.match(line))}
    loops = [
        lines[starts[m[1]] + 1 : i + 1]
        for i, line in enumerate(lines)
        if (m := BACK.match(line)) and starts.get(m[1], i) < i
    ]
    whole = [body for body in loops if not any(LABEL.match(line) for line in body)]
    return most([[line.strip().replace("\t", " ") for line in body] for body in whole], target)


def kleidiai(folder: Path, target: str, scratch: Path) -> list[str]:
    """Return the loop of a kernel of KleidiAI.

    folder  its sources
    """
    source = next((folder / FOLDER).glob(f"*{KLEIDIAI[target]}"))
    object_ = scratch / f"{source.stem}.o"
    flags = {"aarch64-dotprod": "generic+dotprod", "aarch64-i8mm": "generic+dotprod+i8mm"}
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu"]
    command += [f"-mcpu={flags[target]}", "-O3", f"-I{folder}", "-c", source, "-o", object_]
    subprocess.run(command, check=True)
    command = ["llvm-objdump-19", "-d", "--no-show-raw-insn", "--mattr=+all", object_]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = filter(None, map(LINE.match, said.splitlines()))
    lines = [(int(m[1], 16), m[2].replace("\t", " ")) for m in found]
    starts = {at: i for i, (at, _) in enumerate(lines)}
    loops = []
    for i, (_, line) in enumerate(lines):
        first = starts.get(int(m[1], 16), i) if (m := BACK_TO.search(line)) else i
        body = [re.sub(r" <.*", "", text) for _, text in lines[first : i + 1]]
        if first < i and not any(re.match(r"b\.|cb|tb", inner) for inner in body[:-1]):
            loops.append(body)
    return most(loops, target)


def executed(profile: Profile, target: str) -> list[str]:
    """Return the piece of a program that had the most products: those of signed or other bytes."""
    product = PRODUCTS[target]
    names = (product, product.replace("s", "u", 1))
    pieces = sorted(
        profile.code,
        key=lambda piece: -piece.runs * sum(counted(profile.code[piece], name) for name in names),
    )
    return profile.code[pieces[0]]


def most(loops: list[list[str]], target: str) -> list[str]:
    """Return the loop that has the most products."""
    return max(loops, key=lambda body: counted(body, PRODUCTS[target]))


def counted(body: list[str], product: str) -> int:
    """Return how many products a loop has."""
    return sum(line.split()[0] == product for line in body if line)


COLUMNS = ("model of", "product", "loop of", "instructions per product", "share of peak", "goal")


def row(who: str, chip: str, target: str, body: list[str]) -> list[str]:
    """Return a line of the table."""
    product = PRODUCTS[target]
    if not counted(body, product):
        product = product.replace("s", "u", 1)
    count = counted(body, product)
    share = chips.share(chip, body, product)
    goal = "" if who != "intformer" or chip == "cortex-a55" else "at least 80 %"
    missed = ": **missed**" if goal and share < 0.8 else ""
    return [chip, product, who, f"{len(body) / count:.2f}", f"{100 * share:.0f} %", goal + missed]
