"""Whatever is decided about a kernel, it computes the same; the first candidates are the rule."""

import random

import numpy as np
import pytest
from tvm.ir import assert_structural_equal

from intformer.backends.targets import TARGETS
from intformer.backends.x86 import machine_code
from intformer.proof.tir_check import check
from intformer.relay_ops import attention
from intformer.relay_ops.fixedpoint import make_dyadic
from intformer_testing.kernels import CHIPS, Chain, Graph, Program, lowered, on_every_target

DENSE = ("matmul", "rescale", "i_gelu", "requantize16")
K, N = 96, 192  # small, but 12 vectors of columns let most tiles fit


def graph(kind):
    """Return a graph of one kernel, and arrays for it."""
    if kind in ("dense", "norm"):
        chain = Chain(DENSE if kind == "dense" else ("add", "i_layernorm"), K, N)
        return chain.graph, chain.arrays
    if kind == "attention":
        return attending()
    g = Graph()
    g.op("requantize", [g.given("x", "int32", N), *make_dyadic(np.full(N, 1e-3))], "y", "int8", N,
         lo=-127, hi=127)  # fmt: skip
    return g, {"x": np.random.default_rng(0).integers(-(2**17), 2**17, (37, N), np.int32)}


def attending():
    """Four heads of 16 channels over sequences that fill no tile of keys."""
    g, heads, dim = Graph(128), 4, 16
    tables = attention.tables(0.05, 0.05, 0.05, dim, np.full(heads * dim, 0.03))
    inputs = [g.given("qkv", "int8", 3 * heads * dim), "cu_seqlens", *tables.values()]
    g.op("attention", inputs, "out", "int8", heads * dim, heads=heads, head_dim=dim)
    cu = np.cumsum([0, 1, 17, 97, 8]).astype(np.int32)
    qkv = np.random.default_rng(0).integers(-127, 128, (cu[-1], 3 * heads * dim), np.int8)
    return g, {"qkv": qkv, "cu_seqlens": cu}


def candidates(kind, target):
    """Return the space of the kernel."""
    spec, found = TARGETS[target], []

    def choose(form):
        if not form.name.startswith("given"):
            found.append(form.space(spec))
        return [(None, {})]

    lowered(graph(kind)[0], target, choose=choose)
    (space,) = found
    return space


def sampled(kind, target, count):
    """Return decisions: each candidate at least once, the rest at random."""
    space, rng = candidates(kind, target), random.Random(0)
    columns = {}
    for name, values in space.items():
        columns[name] = (values * count)[: max(count, len(values))]
        rng.shuffle(columns[name])
    rows = max((len(column) for column in columns.values()), default=1)
    return [{name: (column * rows)[i] for name, column in columns.items()} for i in range(rows)]


@on_every_target
@pytest.mark.parametrize("kind", ["dense", "norm", "rows", "attention"])
def test_every_candidate_equals_the_reference(target, kind):
    g, arrays = graph(kind)
    for decisions in sampled(kind, target, 4):
        program = Program(g, target, choose=lambda form, d=decisions: [(None, d)])
        program.check(arrays)
        built = [k for k in program.kernels if not k.startswith("given")]
        assert len(built) == 1, decisions


@pytest.mark.parametrize("target", [chip.name for chip in CHIPS])
@pytest.mark.parametrize("kind", ["dense", "norm", "rows", "attention"])
def test_every_candidate_is_integer_only(target, kind):
    for decisions in sampled(kind, target, 2):
        module, _, _ = lowered(graph(kind)[0], target, choose=lambda form, d=decisions: [(None, d)])
        assert check(module, vector_shifts=TARGETS[target].vector_shifts) == [], decisions


@pytest.mark.parametrize("target", [chip.name for chip in CHIPS])
@pytest.mark.parametrize("kind", ["dense", "norm", "rows", "attention"])
def test_the_first_candidates_are_the_default(target, kind):
    space = candidates(kind, target)
    first = {name: values[0] for name, values in space.items()}
    assert all(len(set(values)) == len(values) for values in space.values())
    default = lowered(graph(kind)[0], target)[0]
    for decisions in (first, {"no such": 7}, {name: -77 for name in space}):
        module, _, _ = lowered(graph(kind)[0], target, choose=lambda form, d=decisions: [(None, d)])
        assert_structural_equal(module, default)


def test_another_decision_is_another_kernel():
    """Each decision about a matmul does something."""
    space = candidates("dense", "cascadelake")
    g = graph("dense")[0]
    default = lowered(g, "cascadelake")[0].script()
    for name, values in space.items():
        around = {"columns": 2} if name == "order" else {}
        before = lowered(g, "cascadelake", choose=lambda form, d=around: [(None, d)])[0].script()
        for value in values[1:]:
            decisions = {**around, name: value}
            module, _, _ = lowered(g, "cascadelake", choose=lambda form, d=decisions: [(None, d)])
            assert module.script() != before, decisions
    known = {"tile", "steps", "columns", "order", "chunk", "prefetch"}
    assert known == set(space) and default


def test_prefetch_becomes_an_instruction(tmp_path):
    def prefetches(decisions):
        g = Chain(DENSE, K, N).graph
        program = Program(g, "cascadelake", choose=lambda form: [(None, decisions)])
        code = machine_code.check(program.object_file(tmp_path))
        return sum(n for name, n in code.mnemonics.items() if name.startswith("prefetch"))

    assert prefetches({}) == 0
    assert prefetches({"prefetch": 512}) > 0


@on_every_target
@pytest.mark.parametrize("kind", ["dense", "norm", "rows", "attention"])
def test_versions_share_one_kernel(target, kind):
    """37 rows are five blocks: the first, the second and the last version get their turn."""
    g, arrays = graph(kind)
    several = (sampled(kind, target, 3) * 3)[:3]
    for limits in [(5, 9), (2, 5), (2, 4)]:
        versions = list(zip((*limits, None), several, strict=True))
        program = Program(g, target, choose=lambda form, v=versions: v)
        assert len(set(program.kernels)) == 1
        program.check(arrays)
