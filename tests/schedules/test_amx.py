"""Matrix products on AMX tiles: every number of rows, odd shapes, what the machine code holds."""

import re

import numpy as np
import pytest

from intformer.backends.x86 import machine_code
from intformer.proof import tir_check
from intformer_testing.kernels import MISSING, Chain, Graph, Program, integers, lowered

TARGET = "sapphirerapids"
GELU = ["matmul", "rescale", "i_gelu", "requantize16"]
runs_here = pytest.mark.skipif(
    bool(MISSING[TARGET]), reason=f"this machine lacks {', '.join(MISSING[TARGET])}"
)
# (columns, K): one vector of columns, an odd number of them, tiles of 64, 56, 52 and 40 products
SHAPES = [(16, 768), (48, 80), (48, 768), (64, 112), (96, 208), (33, 3072), (2304, 64)]


def graph(n: int, k: int) -> Graph:
    """A matmul with nothing after it but its bias; weight "acc.1", bias "acc.2"."""
    g = Graph()
    x = g.given("x", "int8", k)
    g.op("matmul", [x, np.ones((n, k), np.int8), np.zeros(n, np.int32)], "acc", "int32", n)
    return g


def product(n: int, k: int) -> Program:
    """The graph, compiled."""
    return Program(graph(n, k), TARGET)


@runs_here
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_every_number_of_rows(n, k):
    """1 to 9 blocks: part of one row tile, of two, and two more groups of rows."""
    rng = np.random.default_rng(k)
    program = product(n, k)
    tables = {
        "acc.1": integers(rng, -127, 127, (n, k), np.int8),
        "acc.2": integers(rng, -(2**18), 2**18, n, np.int32),
    }
    for rows in (*range(1, 41), 64, 65, 71, 72):
        program.check({"x": integers(rng, -128, 127, (rows, k), np.int8)}, tables)


@runs_here
def test_rows_of_several_chunks():
    """More rows than stay in the second-level cache; all threads compute at once."""
    rng = np.random.default_rng(0)
    program = product(320, 3072)
    tables = {"acc.1": integers(rng, -127, 127, (320, 3072), np.int8)}
    for rows in (320, 321, 352, 1001):
        program.check({"x": integers(rng, -128, 127, (rows, 3072), np.int8)}, tables)


@runs_here
@pytest.mark.parametrize("k", [64, 128, 768, 1024])
@pytest.mark.parametrize("ops", [["matmul", "rescale"], GELU, ["matmul", "rescale", "stream_add"]])
def test_epilogues_beside_the_products(ops, k):
    """All of it beside one step, several rows to a step, and rows left over."""
    chain = Chain(ops, k, 96)
    Program(chain.graph, TARGET).check(chain.arrays)
    rows = {name: np.concatenate([x] * 3)[:96] for name, x in chain.arrays.items()}
    Program(chain.graph, TARGET).check(rows)


def test_the_program_holds_integers_alone():
    """Divisions by a variable included, which some chips do in float."""
    module, *_ = lowered(graph(96, 312), TARGET)
    assert tir_check.check(module, vector_shifts=True) == []


@pytest.fixture(scope="module")
def mnemonics(tmp_path_factory):
    """Return (n, k) -> Counter of the instructions of a product; asks nothing of this CPU."""
    pytest.importorskip("iced_x86", reason="needs the compiler extra")

    def count(n, k):
        path = product(n, k).object_file(tmp_path_factory.mktemp("code"))
        found = machine_code.check(path)
        assert found.findings == []
        return found.mnemonics

    return count


def test_tiles_are_multiplied_and_never_saved(mnemonics):
    """Each accumulator is stored once in turns of 32 rows and once in others, and nowhere else.

    Weights are loaded past the first-level cache. How often a product shows depends on what LLVM
    unrolls.
    """
    found = mnemonics(2304, 768)
    assert found["tilestored"] == 4 * 2
    assert found["tdpbusd"] >= 4 * 2
    assert found["tileloaddt1"] >= 2 * 2
    assert found["ldtilecfg"] == found["tilerelease"] == 1
    assert found["vpdpbusd"] == 0


@pytest.mark.parametrize("k", [16, 272])
def test_lengths_that_do_not_suit_tiles_stay_on_vnni(mnemonics, k):
    found = mnemonics(64, k)
    assert found["vpdpbusd"] >= 16
    assert not [name for name in found if re.match(r"tile|tdp|ldtile", name)]
