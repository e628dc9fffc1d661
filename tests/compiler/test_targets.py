"""Families of chips: what this machine runs, what another family takes, what is refused."""

import platform
import re
from dataclasses import dataclass
from types import MappingProxyType

import pytest

from intformer.backends import targets
from intformer.backends.backend import TargetSpec
from intformer.backends.cpu import codegen, host
from intformer.backends.cpu.backend import CpuBackend
from intformer.backends.targets import TARGETS
from intformer.errors import CompileError, LibraryError
from intformer.link import build as library
from intformer.link.elf import Elf
from intformer.relay_ops import expr, i_gelu
from intformer.schedules.isa import Isa
from intformer_testing.kernels import Chain, Graph, lowered

CPU_TARGETS = [name for name, spec in TARGETS.items() if spec.backend in targets.CPUS]


def test_targets_know_their_names():
    assert all(spec.name == name for name, spec in TARGETS.items())
    for spec in TARGETS.values():
        assert all(TARGETS[name].backend is spec.backend for name in spec.variants)
        assert bool(spec.variants) != bool(spec.rules and spec.tvm)


@pytest.mark.parametrize("machine", ["ppc64le", "loongarch64", "s390x"])
def test_another_machine_runs_none_of_them(monkeypatch, machine):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert targets.host() is None
    for name in CPU_TARGETS:
        kind = TARGETS[name].backend.machines[0]
        assert TARGETS[name].missing_here() == [f"a CPU of kind {kind}"]
    with pytest.raises(CompileError, match=f"no target is for this machine, {machine}") as caught:
        targets.get("host")
    assert "\n" not in str(caught.value)


def test_the_c_compiler_of_another_machine_is_not_taken(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(library.shutil, "which", lambda name: "/usr/bin/cc")
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompileError, match="no C compiler for x86_64: `cc` makes code for this"):
        library.compiler(TARGETS["avx2"].backend)
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: name)
    assert library.compiler(TARGETS["avx2"].backend)[-1] == "x86_64-linux-gnu.2.17"
    assert library.compiler(TARGETS["t4"].backend)[-1] == "x86_64-linux-gnu.2.34"


def test_code_of_an_unknown_machine():
    assert targets.of_machine(62, "x.so") is TARGETS["avx2"].backend
    assert targets.of_machine(183, "x.so") is TARGETS["aarch64"].backend
    assert targets.of_machine(243, "x.so") is TARGETS["riscv64"].backend
    with pytest.raises(LibraryError, match=r"x\.so") as caught:
        targets.of_machine(258, "x.so")
    assert "ELF machine 258" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("machine", "line", "target"),
    [
        ("aarch64", "Features\t: fp asimd asimddp i8mm", "aarch64-i8mm"),
        ("aarch64", "Features\t: fp asimd asimddp", "aarch64-dotprod"),
        ("aarch64", "Features\t: fp asimd", "aarch64"),
        ("riscv64", "isa\t\t: rv64imafdcv_zicsr_zvl128b", "riscv64-v"),
        ("riscv64", "isa\t\t: rv64imafdc_zicsr_zve32x", "riscv64"),
    ],
)
def test_another_machine_runs_its_own(monkeypatch, tmp_path, machine, line, target):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(host, "CPUINFO", tmp_path / "cpuinfo")
    assert targets.host_target() == target
    assert TARGETS["x86-64"].missing_here() == ["a CPU of kind x86_64"]


class Toy(CpuBackend):
    """A family that exists in this test alone, with all that kernels take of one."""

    name = "toy"
    elf_machine = 183
    machines = ("aarch64",)
    probes = MappingProxyType({})
    baseline = imported = frozenset()
    zig_triple = "aarch64-linux-gnu.2.17"

    def lowering(self):
        return {
            expr.MUL_HIGH: expr.high_product,
            expr.MUL_ROUND: expr.rounded_product,
            expr.ADD32: expr.sum32,
            expr.SHIFT32: expr.shift32,
        }

    def vector_shifts(self, features):
        return True

    def read_code(self, path):
        raise NotImplementedError

    def spelling(self, feature):
        return feature

    def host_features(self):
        return set()


TOY = Toy()


@dataclass(frozen=True)
class ToyTarget(TargetSpec):
    def isa(self):
        return Isa(
            lanes=4,
            registers=32,
            matmul_tile=(4, 4),
            steps=1,
            score_tiles=(1,),
            context_tiles=8,
        )


def gelu():
    graph = Graph()
    graph.op(
        "i_gelu", [graph.given("x", "int16", 64), i_gelu.point(12)], "y", "int16", 64, form="erf"
    )
    return graph


@pytest.mark.parametrize("graph", [gelu(), Chain(("i_layernorm",), 64, 64).graph])
def test_another_family_is_one_class(monkeypatch, tmp_path, graph):
    """Nothing between an op and its machine code knows the families that exist."""
    spec = ToyTarget(
        name="toy",
        title="",
        backend=TOY,
        tvm={"kind": "llvm", "mtriple": "aarch64-linux-gnu"},
        rules="x86",
    )
    monkeypatch.setitem(TARGETS, "toy", spec)
    module, *_ = lowered(graph, "toy")
    for path in codegen.generate(module, spec, tmp_path):
        assert int.from_bytes(Elf(path).data[18:20], "little") == Toy.elf_machine
    text = spec.backend.listing(spec, module)
    assert re.search(r"\bv\d+\.4s\b", text)
    assert not re.search(r"[xyz]mm\d", text)
