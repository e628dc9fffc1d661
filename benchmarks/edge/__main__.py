"""What is known of chips that are not here: `python -P benchmarks/edge`, or `make edge`.

Libraries for ARM and RISC-V run one sequence of 128 tokens under qemu-user, whose plugin counts
instructions; ONNX Runtime's INT8 does too. LLVM's model of a chip makes cycles of the instructions.
The same is done for x86, where a clock says how far off that is. Needs qemu-user, LLVM 19 (llvm-mca
and its other tools) and the C libraries of the Makefile's EMULATORS. All that is made stays in
out/edge.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "records")]
import intformer_records as records  # noqa: E402

from intformer import pipeline  # noqa: E402
from intformer.backends.targets import TARGETS  # noqa: E402
from intformer.frontend import import_model  # noqa: E402
from intformer.frontend.shapes import random_model, random_sequences  # noqa: E402
from intformer.ir.model import IntModel  # noqa: E402
from intformer.link import build as linker  # noqa: E402
from intformer_edge import chips, emulator, loops, rival  # noqa: E402
from intformer_edge.pieces import Profile  # noqa: E402

OUT = Path("out/edge")
TOKENS, SECONDS = 128, 5
SHAPES = {"minilm-l6": 10, "bert-base": 75}  # -> ms that four Cortex-A76 should take
COUNTED = ("aarch64-dotprod", "aarch64-i8mm", "aarch64", "riscv64-v")
RACED = "aarch64-dotprod"
CALIBRATED, MODEL = "avx2", "native"  # qemu 7.2 has no VNNI
MODELS = {RACED: "neoverse-n1", "aarch64-i8mm": "neoverse-n2"}
A76 = 2.4  # GHz of a Raspberry Pi 5, which has four
PRODUCTS = {  # instructions of products in kernels that multiply matrices
    "aarch64-dotprod": {"sdot", "smlal", "smlal2"},
    "aarch64-i8mm": {"smmla", "sdot", "smlal", "smlal2"},
    "aarch64": {"smull", "smull2", "saddlp", "smlal", "smlal2"},
    "riscv64-v": {"vwmacc.vx", "vmacc.vv", "vmul.vv", "vwmacc.vv"},
    "avx2": {"vpmaddwd"},
}
MULTIPLY = ("dense", "attention")
REST, RATIO = 0.2, 0.5  # goals


@cache
def imported(shape: str) -> IntModel:
    """Return a model with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        source = random_model(shape, Path(folder))
        model = import_model(source, calibrate=random_sequences(shape)[:8], method="minmax")
    return pipeline.pruned(model)


def libraries(shape: str) -> dict[str, Path]:
    """Return the library of every target, compiled where it is not there."""
    paths = {target: OUT.absolute() / f"{shape}-{target}.so" for target in (*COUNTED, CALIBRATED)}
    missing = [target for target, path in paths.items() if not path.exists()]
    if missing:
        model = imported(shape)
        for target in missing:
            pipeline.compile(model, paths[target], target=target)
    return paths


def program(target: str) -> Path:
    """Return the program that runs libraries of a target."""
    more = [linker.SOURCES / "intformer_open.c"]
    return emulator.compiled(OUT.absolute(), "ours.c", TARGETS[target].backend, more)


def profiled(target: str, path: Path) -> Profile:
    """Count what one run of a library executes."""
    machine = TARGETS[target].backend.elf_machine
    command = [program(target), path, str(TOKENS)]
    return emulator.counted(path.with_suffix(".counts"), machine, path, command)


def raced(shape: str) -> Profile:
    """Count what one run of ONNX Runtime executes, on a chip of the target RACED."""
    folder = OUT.absolute()
    path = rival.library(folder)
    made = emulator.compiled(folder, "ort.c", TARGETS[RACED].backend)
    command = [made, path, rival.graph(folder, shape, TOKENS), str(TOKENS)]
    machine = TARGETS[RACED].backend.elf_machine
    root = rival.root(folder, Path(emulator.EMULATORS[machine][3]))
    out = folder / f"{shape}-ort.counts"
    return emulator.counted(out, machine, path, command, "cortex-a76", root)


def split(profile: Profile, target: str) -> tuple[float, Counter]:
    """Return the share of instructions outside of loops of products, and it for each kernel."""
    owners, outside = profile.owners(), Counter()
    for piece, lines in profile.code.items():
        names = {line.split()[0] for line in lines}
        if not (owners[piece].startswith(MULTIPLY) and names & PRODUCTS[target]):
            outside[owners[piece]] += piece.executed
    outside["elsewhere"] = profile.elsewhere
    return sum(outside.values()) / profile.executed, outside


def against(found: float, goal: float, what: str) -> str:
    """Return a goal, and whether it was missed."""
    return f"at most {what}{'' if found <= goal else ': **missed**'}"


def instructions(shape: str, target: str, mine: Profile, theirs: Profile) -> list[str]:
    """Return a line of the first table."""
    rest, kernels = split(mine, target)
    largest = ", ".join(f"{n} {count / mine.executed:.1%}" for n, count in kernels.most_common(4))
    ratio = mine.executed / theirs.executed
    is_raced = target == RACED
    return [
        *(shape, target, f"{mine.executed / 1e6:.1f}", f"{mine.executed / TOKENS / 1e3:.0f}"),
        f"{100 * rest:.1f} % ({largest.replace('%', ' %')})",
        against(rest, REST, "20 %") if is_raced else "",
        *((f"{theirs.executed / 1e6:.1f}", f"{ratio:.2f}") if is_raced else ("", "")),
        against(ratio, RATIO, "0.5") if is_raced else "",
    ]


def calibration(shape: str, path: Path) -> tuple[float, list[str]]:
    """Return measured by predicted cycles on x86, and a line of the last table."""
    said = subprocess.run(
        [program(CALIBRATED), path, str(TOKENS), str(SECONDS)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ms, clock = map(float, said.stdout.split())
    predicted = chips.total(profiled(CALIBRATED, path), MODEL)
    factor = ms * clock * 1e6 / predicted
    spent = f"{predicted / 1e6:.1f}"
    where = f"this machine, one thread, {clock:.2f} GHz"
    return factor, [
        *(shape, CALIBRATED, where, spent, f"{predicted / clock / 1e6:.2f}"),
        *(f"{ms:.2f}: {factor:.2f} times that", ""),
    ]


def times(shape: str, target: str, mine: Profile, factor: float) -> list[str]:
    """Return a line of the last table: four cores that share the work evenly."""
    model = MODELS[target]
    spent = chips.total(mine, model)
    ms = spent / A76 / 4e6
    goal = SHAPES[shape]
    where = f"four Cortex-A76 of {A76} GHz" if target == RACED else f"four {model} of {A76} GHz"
    return [
        *(shape, target, where, f"{spent / 1e6:.1f}", f"{ms:.2f}", f"{ms * factor:.2f} expected"),
        against(ms * factor, goal, f"{goal} ms") if target == RACED else "",
    ]


def loop_rows(theirs: Profile, folder: Path | None) -> list[list[str]]:
    """Return the lines of the table of loops."""
    model = imported("minilm-l6")
    with tempfile.TemporaryDirectory() as scratch:
        bodies = {("intformer", target): loops.ours(model, target) for target in loops.PRODUCTS}
        bodies["ONNX Runtime", RACED] = loops.executed(theirs, RACED)
        if folder:
            for target in loops.PRODUCTS:
                body = loops.kleidiai(folder, target, Path(scratch))
                bodies["KleidiAI", target] = body
    return [
        loops.row(who, chip, target, body)
        for chip, targets in loops.CHIPS.items()
        for (who, target), body in bodies.items()
        if target in targets
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", default=",".join(SHAPES), help="default: %(default)s")
    parser.add_argument("--kleidiai", type=Path, help="sources of KleidiAI, for its loops")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    counts, spent, theirs = [], [], None
    command = f"python -P benchmarks/edge --shapes {args.shapes}"
    command += " --kleidiai DIR" if args.kleidiai else ""
    for shape in args.shapes.split(","):
        paths, theirs = libraries(shape), raced(shape)
        factor, line = calibration(shape, paths[CALIBRATED])
        spent.append(line)
        for target in COUNTED:
            mine = profiled(target, paths[target])
            counts.append(instructions(shape, target, mine, theirs))
            print(*counts[-1], sep="; ", flush=True)
            if target in MODELS:
                spent.append(times(shape, target, mine, factor))
                print(*spent[-1], sep="; ", flush=True)
    columns = ["model, 1x128", "target", "millions of instructions", "thousands per token"]
    columns += ["outside of loops of products", "goal", "ONNX Runtime INT8, millions"]
    records.write("edge-instructions", command, [*columns, "ratio", "goal "], counts)
    columns = ["model, 1x128", "target", "chip", "predicted cycles, millions", "predicted ms"]
    records.write("edge-times", command, [*columns, "measured, or times that", "goal"], spent)
    rows = loop_rows(theirs, args.kleidiai)
    print(records.write("edge-loops", command, loops.COLUMNS, rows))


if __name__ == "__main__":
    main()
