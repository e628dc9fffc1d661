"""MODEL.check: a small program that tells, on the machine a library is for, whether it is exact.

Inputs and the numbers that the NumPy reference gives for them are part of the program, which needs
nothing but the C library and the library it checks.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intformer.backends import targets
from intformer.ir.model import IntModel
from intformer.link import program
from intformer.link.plan_c import c_array, c_string
from intformer.proof.inputs import given, random_batch, real_batches
from intformer.runtime import LibraryFile
from intformer.runtime.texts import Text

SINGLE = (1, 2, 3, 7, 17, 33)  # lengths of sequences that are run alone, and the longest
LONGEST = 2048  # tokens, of models that take more: the reference keeps all scores of a layer
MIXED = ((5, 1, 13, 2, 31, 3), (16,) * 8)  # lengths of sequences in one batch
REAL = 17  # texts of the calibration: the first alone, then all others in one batch
POSITIONS = 4  # rows of a case, where each is a token that was asked for
WHOLE = 1 << 17  # numbers of a case up to which they are kept; of larger ones a hash per row
SHAPES = ((1, 16), (1, 128), (1, 512), (8, 128))  # to time: sequences, tokens
_INPUTS = {  # member of check_case -> input
    "ids_at": "input_ids",
    "offsets_at": "cu_seqlens",
    "types_at": "token_type_ids",
    "places_at": "position_ids",
    "positions_at": "positions",
}


@dataclass(frozen=True)
class Case:
    """A batch and what the library must make of it.

    name    for people
    inputs  int32 arrays by name; what is not there the library makes itself
    wanted  int32 [rows, channels]
    """

    name: str
    inputs: dict[str, np.ndarray]
    wanted: np.ndarray


def build(
    library: LibraryFile,
    model: IntModel,
    path: Path,
    texts: Sequence[Text] = (),
    musl: bool = False,
) -> Path:
    """Write the program and return its path; raise CompileError.

    model  what the library was made from
    path   of the program; beside the library, it finds it without an argument
    texts  of the calibration, or none: random batches alone
    musl   for a machine with musl in place of glibc
    """
    backend = targets.of_machine(library.image.machine, str(library.path))
    data = _data(library, cases(library, model, texts))
    return program.build(path, "check.c", backend, data, musl)


def cases(library: LibraryFile, model: IntModel, texts: Sequence[Text]) -> list[Case]:
    """Return batches of every kind with the reference's results, the smallest first."""
    longest, rng = min(model.meta["max_length"], LONGEST), np.random.default_rng(0)
    found: list[tuple[str, dict, tuple[str, ...]]] = []
    for lengths in [*((n,) for n in SINGLE), *MIXED, (longest,)]:
        lengths = [min(n, longest) for n in lengths]
        batch = random_batch(model.meta, lengths, rng)
        batch["positions"] = batch["positions"][:POSITIONS]
        found.append((f"random, lengths {' '.join(map(str, lengths))}", batch, ()))
    name, batch, _ = found[len(SINGLE)]
    batch = {**batch, "token_type_ids": np.zeros_like(batch["token_type_ids"])}
    default = ("token_type_ids", "position_ids")
    found.insert(len(SINGLE) + 1, (f"{name}, default types and positions", batch, default))
    if texts:
        step = max(1, len(texts) // REAL)
        picked = list(texts)[::step][:REAL]
        for part in (picked[:1], picked[1:]):
            for batch in real_batches(library, part):
                found.append((f"real, {len(batch['cu_seqlens']) - 1} sequences", batch, ()))
    return [
        Case(
            name,
            {k: v for k, v in given(library, batch).items() if k not in left_out},
            model.run(batch)[model.output],
        )
        for name, batch, left_out in found
    ]


def row_hashes(rows: np.ndarray) -> np.ndarray:
    """Return a number for each row, uint64, as hash() of check.c computes it.

    A row with one other number has another hash: the factors are odd.
    """
    with np.errstate(over="ignore"):
        factor, powers = np.uint64(6364136223846793005), np.ones(rows.shape[1], np.uint64)
        powers[1:] = factor
        powers = np.multiply.accumulate(powers)[::-1]
        plain = rows.astype(np.int32).view(np.uint32).reshape(rows.shape).astype(np.uint64)
        return ((plain + np.uint64(1)) * powers).sum(axis=1, dtype=np.uint64)


def _data(library: LibraryFile, made: list[Case]) -> list[tuple[str, bytes]]:
    """Return the files data.c, and data.s with the numbers that it points into."""
    numbers, at, rows = [], 0, []
    for case in made:
        hashed = case.wanted.size > WHOLE
        wanted = row_hashes(case.wanted).view(np.int32) if hashed else case.wanted
        places = {}
        for member, name in _INPUTS.items():
            places[member] = at if name in case.inputs else -1
            numbers.append(np.asarray(case.inputs.get(name, ()), np.int32))
            at += numbers[-1].size
        counts = [case.inputs["input_ids"].size, case.inputs["cu_seqlens"].size - 1]
        counts += [np.size(case.inputs.get("positions", ())), len(case.wanted)]
        members = [c_string(case.name), *counts, *places.values(), at, int(hashed)]
        rows.append(f"{{{', '.join(map(str, members))}}}")
        numbers.append(np.asarray(wanted, np.int32).reshape(-1))
        at += numbers[-1].size
    data = np.concatenate(numbers).astype("<i4").tobytes()
    digest = hashlib.sha256(data).hexdigest()
    limits = library.metadata["limits"]
    shapes = dict.fromkeys((b, min(n, limits["max_length"])) for b, n in SHAPES)
    tables = [
        f"const char check_library[] = {_bytes(library.path.name)};",
        f"const int32_t check_channels = {made[0].wanted.shape[1]};",
        f"const int32_t check_vocabulary = {limits['vocab_size']};",
        f"const int32_t check_takes_positions = {int('positions' in library.plan['inputs'])};",
        c_array("char *const", "check_variants", [*map(c_string, library.variants), "0"], ""),
        c_array(
            "check_shape", "check_shapes", [*(f"{{{b}, {n}}}" for b, n in shapes), "{0, 0}"], ""
        ),
        c_array("check_case", "check_cases", rows, ""),
        f"const int32_t check_num_cases = {len(rows)};",
    ]
    head = "/* Generated by intformer (compiler/link/check.py). */"
    return [
        ("numbers", data),
        ("data.s", _DATA_S.format(digest=digest).encode()),
        ("data.c", "\n".join([head, '#include "check.h"', *tables, ""]).encode()),
    ]


def _bytes(text: str) -> str:
    """Return a C string of any file name."""
    return '"' + "".join(f"\\{byte:03o}" for byte in os.fsencode(text)) + '"'


_DATA_S = """\
# {digest}: zig caches objects by the text of their source and does not look into .incbin
.section .rodata.check_numbers,"a",@progbits
.balign 4096
.globl check_numbers
check_numbers:
.incbin "numbers"
.section .note.GNU-stack,"",@progbits
"""
