"""The machine code of the kernels: the chip's dot products in tight loops, and no float."""

import re
from typing import NamedTuple

import numpy as np
import pytest

from intformer.backends.cpu import code_bytes
from intformer.backends.targets import TARGETS
from intformer.link.elf import Elf
from intformer.passes.fuse import CHAINS
from intformer.relay_ops import attention, attention_ibert, i_gelu
from intformer_testing.kernels import CHIPS, Chain, Graph, Program

iced_x86 = pytest.importorskip("iced_x86", reason="needs the compiler extra")

WIDTH, HEADS = 128, 2
COLUMNS = 192  # of a matrix product: whole tiles on every chip
IBERT = [
    ("matmul", "i_gelu_ibert", "requantize"),
    ("residual_add", "i_layernorm_ibert", "requantize"),
    ("i_layernorm_ibert",),
    ("matmul", "requantize"),
]
CHOSEN = [chains[0] for chains in CHAINS.values()] + IBERT
DENSE = [chain for chain in CHOSEN if chain[0] == "matmul"]
ATTENTION = ["attention", "attention_ibert"]
NAMES = ["-".join(chain) for chain in CHOSEN] + ATTENTION + ["rows"]
# TVM puts them into every object, weak and uncalled; the linker leaves them out
UNLINKED = ("__truncsfhf2+", "__extendhfsf2+")


class Instruction(NamedTuple):
    """One instruction: where, its name, and all of it as text."""

    ip: int
    name: str
    text: str
    jumps_to: int | None


class Code:
    """The machine code of one program's kernels."""

    def __init__(self, path, family):
        self.found = family.read_code(path)
        self.sections = self._sections(Elf(path)) if family.name == "x86" else []

    def _sections(self, elf):
        sections = []
        formatter = iced_x86.Formatter(iced_x86.FormatterSyntax.INTEL)
        for section in elf.sections:
            if section.flags & code_bytes.EXECUTABLE:
                code = elf.data[section.offset : section.offset + section.size]
                sections.append(
                    [
                        Instruction(i.ip, *self._read(formatter, i))
                        for i in iced_x86.Decoder(64, code, ip=section.addr)
                    ]
                )
        return sections

    @staticmethod
    def _read(formatter, i):
        text = formatter.format(i)
        jump = i.near_branch_target if i.is_jcc_short_or_near else None
        return text.split()[0], text, jump

    def instructions(self):
        """Every instruction of every section."""
        return [i for section in self.sections for i in section]

    def inner_loops(self, name):
        """Return the instructions of every innermost loop in which `name` occurs."""
        loops = []
        for section in self.sections:
            ends = [
                (i.jumps_to, i.ip) for i in section if i.jumps_to is not None and i.jumps_to <= i.ip
            ]
            inner = [
                (a, b)
                for a, b in ends
                if not any(a <= c and d <= b for c, d in set(ends) - {(a, b)})
            ]
            loops += [[i for i in section if a <= i.ip <= b] for a, b in inner]
        return [loop for loop in loops if any(i.name == name for i in loop)]


def attending(op):
    g = Graph(128)
    dim = WIDTH // HEADS
    if op == "attention":
        tables = attention.tables(0.05, 0.05, 0.05, dim, np.full(WIDTH, 0.03))
    else:
        tables = attention_ibert.tables(1e-3, 2.79e6 * 2.0**30, 0.05, 0.03, WIDTH)
    inputs = [g.given("qkv", "int8", 3 * WIDTH), "cu_seqlens", *tables.values()]
    g.op(op, inputs, "out", "int8", WIDTH, heads=HEADS, head_dim=dim)
    return g


def rows():
    """The ops that look up, pick and pool rows, and those never fused here."""
    g = Graph(128)
    scale = np.ones(9, np.int32), np.ones(9, np.int32)
    tables = [t for d in (np.int8, np.int16) for t in (np.zeros((9, WIDTH), d), *scale)]
    g.op("embed", ["input_ids", "position_ids", *tables], "e", "int32", WIDTH, types=0, lo=-9, hi=9)
    g.op("take_rows", ["e", "positions"], "picked", "int32", WIDTH, "position")
    g.op("i_tanh", ["e"], "tanh", "int32", WIDTH)
    g.given("x", "int16", WIDTH)
    g.op("i_gelu", ["x", i_gelu.point(9)], "gelu", "int16", WIDTH, form="tanh")
    inputs = ["x", "cu_seqlens"]
    g.op("mean_pool", inputs, "pooled", "int32", WIDTH, "sequence", fraction_bits=12)
    return g


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """Return (target, name) -> Code; compiling asks nothing of this CPU."""
    known = {}

    def make(target, name):
        if (target, name) not in known:
            if name == "rows":
                graph = rows()
            elif name in ATTENTION:
                graph = attending(name)
            else:
                graph = Chain(tuple(name.split("-")), WIDTH, COLUMNS).graph
            folder = tmp_path_factory.mktemp("code")
            path = Program(graph, target).object_file(folder)
            known[target, name] = Code(path, TARGETS[target].backend)
        return known[target, name]

    return make


@pytest.mark.parametrize("target", [chip.name for chip in CHIPS])
@pytest.mark.parametrize("name", NAMES)
def test_no_float_instruction(code, target, name):
    found = code(target, name).found
    assert found.instructions > 500
    assert [one for one in found.findings if not one.where.startswith(UNLINKED)] == []
    family = TARGETS[target].backend
    asked = {family.spelling(f) for f in (*TARGETS[target].features, *family.baseline)}
    assert {family.spelling(f) for f in found.features} <= asked


@pytest.mark.parametrize("name", ["-".join(chain) for chain in DENSE])
def test_dense_holds_a_tile_in_registers_on_vnni(code, name):
    """8 rows x 3 vectors, two steps a turn, 8 broadcasts and 3 weight vectors each, no spill."""
    loops = code("cascadelake", name).inner_loops("vpdpbusd")
    assert loops
    for loop in loops:
        dots = [i for i in loop if i.name == "vpdpbusd"]
        assert len(dots) == 2 * 24
        accumulators = {i.text.split()[1].split(",")[0] for i in dots}
        assert len(accumulators) == 24 and all(a.startswith("zmm") for a in accumulators)
        assert not [i.text for i in loop if "[rsp" in i.text]
        assert len(loop) <= 2 * (24 + 8 + 3) + 4


@pytest.mark.parametrize("name", ["-".join(chain) for chain in DENSE])
@pytest.mark.parametrize(
    ("target", "dot", "count", "others"),
    [("avxvnni", "vpdpbusd", 8, 10), ("avx2", "vpmaddwd", 16, 42)],
)
def test_dense_holds_a_tile_in_registers_on_avx2(code, name, target, dot, count, others):
    """4 rows x 2 vectors, nothing spilled; AVX2 unpacks 2 vectors of weights for the 4 rows."""
    loops = [i for i in code(target, name).inner_loops(dot) if len(i) >= count + 4]
    assert loops
    for loop in loops:
        steps = sum(i.name == dot for i in loop) / count
        assert steps in (1, 2)
        assert all("ymm" in i.text for i in loop if i.name == dot)
        assert not [i.text for i in loop if "[rsp" in i.text]
        assert len(loop) <= steps * (count + others)


EPILOGUES = [  # 32-bit lanes: name, products of 32 x 32 bits, of 16 x 16 bits per 32 numbers
    ("matmul-rescale", 4, 0),
    ("matmul-relu-rescale", 4, 0),
    ("matmul-rescale-i_gelu", 4, 7),
    ("matmul-rescale-i_gelu-requantize16", 4, 9),
]


@pytest.mark.parametrize(("name", "wide", "narrow"), EPILOGUES)
def test_epilogues_multiply_as_little_as_stated(code, name, wide, narrow):
    """Rescale: 2 vpmuldq for 16 numbers. GELU: a vpmulhrsw for 32 numbers per Horner step."""
    found = code("cascadelake", name).found.mnemonics
    tile = 8 * 48  # the numbers whose epilogue is written out once
    assert found["vpmuldq"] == wide * tile // 32
    assert found["vpmulhrsw"] == narrow * 8 * 2  # 48 columns: 32 at once, then 16
    for other in ("vpmullq", "vpmuludq", "vpmulld", "vpmulhw"):
        assert found[other] == 0, other


def test_layernorm_multiplies_64_bits_once_per_row(code):
    """The statistics of 8 rows: n S2, S1^2, m, the seed and 3 Newton steps; none per channel."""
    layernorm = code("cascadelake", "add-i_layernorm")
    assert 1 <= layernorm.found.mnemonics["vpmullq"] <= 16
    assert layernorm.inner_loops("vpmuldq") and not layernorm.inner_loops("vpmullq")


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_multiplies_on_vnni(code, name):
    """Scores: 8 rows x 2 key vectors. Context: 4 rows x 4 vectors. (i-exp may use vpdpwssd too.)"""
    for dot in ("vpdpbusd", "vpdpwssd"):
        loops = code("cascadelake", name).inner_loops(dot)
        counts = {sum(i.name == dot for i in loop) for loop in loops}
        assert counts == {16} or (dot == "vpdpwssd" and counts == {1, 16})
        for i in (i for loop in loops for i in loop):
            assert i.name != dot or "zmm" in i.text
            assert not ("zmm" in i.text and "[rsp" in i.text), i.text


@pytest.mark.parametrize("name", NAMES)
def test_any_x86_gets_sse2_alone(code, name):
    found = code("x86-64", name)
    wide = [i.text for i in found.instructions() if re.search(r"\b[yz]mm\d", i.text)]
    assert wide == []
    assert {f for f in found.found.features if re.search("AVX|SSE[34]|FMA|BMI|POPCNT", f)} == set()
    if name in ATTENTION or name.startswith("matmul"):
        assert found.found.mnemonics["pmaddwd"] >= 8
