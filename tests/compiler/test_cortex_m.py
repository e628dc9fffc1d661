"""Static libraries for Cortex-M: every number equals the reference, in emulators.

qemu-arm runs the code as a Linux program; qemu-system-arm runs it without an operating system, by
the startup code of examples/cortex_m.
"""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from intformer import pipeline
from intformer.backends.cortex_m import machine_code
from intformer.backends.cortex_m.mnemonics import fault
from intformer.backends.targets import TARGETS
from intformer.errors import CompileError
from intformer.frontend import import_model
from intformer.link import build as linker
from intformer.proof.inputs import random_batch, random_batches
from intformer_accuracy import albert
from intformer_testing import golden_models, static_programs
from intformer_testing.libc import needs_zig

TARGET = "cortex-m"
BOARD = Path(__file__).parents[2] / "examples" / "cortex_m"
CASES = golden_models.cases()
FIRST = "native/albert/masked-lm"
FAST = {FIRST}
ZIG = [sys.executable, "-m", "ziglang"]
ARM_LINUX = [*ZIG, "cc", "-target", "arm-linux-musleabi", "-mthumb", "-static"]
BARE = [*ZIG, "cc", "-target", "thumb-freestanding-gnueabi", "-mcpu=cortex_m4", "-O2"]
BARE += ["-ffreestanding", "-fno-builtin", "-Wall", "-Werror"]
EMULATOR = ["qemu-system-arm", "-machine", "mps2-an386", "-nographic", "-monitor", "none"]
EMULATOR += ["-serial", "none", "-semihosting-config", "enable=on,target=native", "-kernel"]
ON_BOARD = """
#include <stddef.h>
void say(const char *text);
size_t stack_used(void);
int run_cases(void);
void say_number(long number);
int main(void) {
  int code = run_cases();
  say_number((long)stack_used()), say(" bytes of stack\\n");
  return code;
}
"""
pytestmark = needs_zig
needs_qemu_arm = pytest.mark.skipif(
    not shutil.which("qemu-arm"), reason="this machine lacks qemu-arm (package qemu-user)"
)
needs_board = pytest.mark.skipif(
    not shutil.which("qemu-system-arm"),
    reason="this machine lacks qemu-system-arm (package of that name)",
)


def batches_of(model):
    """Batches of several sequences, the longest among them."""
    return random_batches(model.meta, 2, seed=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Compiles a golden model: case -> library and model."""
    known = {}

    def make(case):
        if case not in known:
            folder = tmp_path_factory.mktemp("static")
            model = pipeline.pruned(CASES[case](folder))
            limits = {"max_tokens": max(len(b["input_ids"]) for b in batches_of(model))}
            if "positions" in static_programs.inputs_of(model):
                limits["max_positions"] = max(len(b["positions"]) for b in batches_of(model))
            options = {"target": TARGET, "static": True, "max_sequences": 8, **limits}
            known[case] = pipeline.compile(model, folder / "libmodel.a", **options), model
        return known[case]

    return make


@needs_qemu_arm
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c in FAST else [pytest.mark.slow]) for c in CASES]
)
def test_models_equal_the_reference(made, tmp_path, case):
    library, model = made(case)
    sources = static_programs.write(tmp_path, static_programs.source(model, batches_of(model)))
    program, include = tmp_path / "program", f"-I{library.path.parent}"
    command = [*ARM_LINUX, "-O1", *sources, library.path, include, "-o", program]
    subprocess.run(command, check=True, env=linker.compiler_files_in(tmp_path))
    done = subprocess.run(["qemu-arm", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    wanted = sum(model.run(batch)[model.output].size for batch in batches_of(model))
    assert done.stdout == f"{wanted} equal\n"


def on_board(folder, library, *sources):
    """Link a program for the board and run it there; return what it says, and the program."""
    objects = []
    env = linker.compiler_files_in(folder)
    for source in (BOARD / "startup.c", *sources):
        objects.append(folder / f"{source.stem}.o")
        command = [*BARE, f"-I{library.path.parent}", "-c", source, "-o", objects[-1]]
        subprocess.run(command, check=True, env=env)
    program = folder / "program.elf"
    link = [*ZIG, "ld.lld", "-T", BOARD / "board.ld", *objects, library.path, "-o", program]
    subprocess.run(link, check=True, env=env)
    done = subprocess.run([*EMULATOR, program], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done
    return done.stdout + done.stderr, program


@needs_board
def test_the_example(made, tmp_path):
    library, model = made(FIRST)
    said, _ = on_board(tmp_path, library, BOARD / "main.c")
    batch = random_batch(model.meta, [4], np.random.default_rng(0))
    batch |= {"input_ids": np.arange(1, 5, dtype=np.int32), "positions": np.int32([0])}
    batch["token_type_ids"] *= 0
    numbers = " ".join(map(str, model.run(batch)[model.output].ravel()[:8]))
    assert said.splitlines()[0] == f"numbers: {numbers}"


@pytest.mark.slow
@needs_board
def test_a_real_model_without_an_operating_system(tmp_path):
    """The ALBERT of rxnmapper on reactions: bit for bit, and what it takes of flash and RAM."""
    if not importlib.util.find_spec("rxnmapper"):
        pytest.skip("package rxnmapper is not installed")
    model, batches = reactions(tmp_path)
    limits = {"max_tokens": 64, "max_sequences": 2, "max_positions": 4}
    path = tmp_path / "libmodel.a"
    library = pipeline.compile(model, path, target=TARGET, static=True, **limits)
    cases, main = static_programs.write(tmp_path, static_programs.source(model, batches), ON_BOARD)
    said, program = on_board(tmp_path, library, cases, main)
    wanted = sum(model.run(batch)[model.output].size for batch in batches)
    equal, stack = said.splitlines()
    assert equal == f"{wanted} equal"
    used = int(stack.partition(" ")[0])
    assert 1000 < used < 16 << 10
    sizes = f"{library.code_bytes} of code, {library.weight_bytes} of weights"
    print(f"bytes: {sizes}; {library.arena_bytes} of arena, {used} of stack; {program.name}")


def reactions(folder):
    """Return the model and two batches of real reactions, some tokens asked for."""
    package = Path(importlib.util.find_spec("rxnmapper").submodule_search_locations[0])
    tokenizer = albert.smiles_tokenizer(package, package / albert.MODEL / "vocab.txt")
    tokenizer.save(str(folder / "smiles.json"))
    texts = sorted(albert.CALIBRATION.read_text().splitlines(), key=len)
    options = {"tokenizer": folder / "smiles.json", "method": "minmax"}
    model = pipeline.pruned(import_model(package / albert.MODEL, calibrate=texts[:16], **options))
    first, *others = (tokenizer.encode(text).ids[:30] for text in texts[:3])
    batches = [batch([first], [1, 3]), batch(others, [1, 4, len(others[0]) + 2])]
    return model, batches


def batch(sequences, positions):
    """Pack sequences."""
    lengths = [len(ids) for ids in sequences]
    ids = np.concatenate(sequences)
    found = {
        "input_ids": ids,
        "token_type_ids": np.zeros_like(ids),
        "position_ids": np.concatenate([np.arange(n) for n in lengths]),
        "cu_seqlens": np.cumsum([0, *lengths]),
        "positions": np.array(positions),
    }
    return {name: numbers.astype(np.int32) for name, numbers in found.items()}


def test_no_shared_library(made, tmp_path):
    _, model = made(FIRST)
    with pytest.raises(CompileError, match="load no shared library - cortex-m - add --static"):
        pipeline.compile(model, tmp_path / "model.so", target=TARGET)


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("vadd.f32 s0, s1, s2", "floating-point unit: vadd.f32 s0, s1, s2"),
        ("vldr s0, [r0]", "floating-point unit: vldr s0, [r0]"),
        ("vmov r0, s0", "floating-point unit: vmov r0, s0"),
        ("mcr p7, #0, r0, c0, c0", "unknown instruction: mcr p7, #0, r0, c0, c0, #0"),
        (".inst.w 0xffffffff", "unknown instruction: 0xffff"),
        ("smlad r0, r1, r2, r3", None),
        ("b 1f; .word 0xee300a81; 1:", None),  # of data, which only looks like vadd.f32
    ],
)
def test_what_is_no_integer_code_is_refused(tmp_path, instruction, reason):
    head = (".syntax unified", ".fpu fpv4-sp-d16", ".thumb_func", ".globl f", "f:")
    lines = "".join(f'__asm__("{line}");\n' for line in (*head, instruction, "bx lr"))
    file, made = tmp_path / "code.c", tmp_path / "code.o"
    file.write_text(lines)
    subprocess.run(
        [*BARE, "-c", file, "-o", made], check=True, env=linker.compiler_files_in(tmp_path)
    )
    found = [finding.what for finding in machine_code.check(made).findings]
    assert found[:1] == ([reason] if reason else [])


def test_words_of_instructions():
    assert fault("smlad") is None
    assert fault("vmla") == "floating-point unit"
    assert fault("cdp") == "unknown instruction"


def test_it_never_runs_here():
    assert TARGETS[TARGET].missing_here() == ["a CPU of kind cortex-m"]
