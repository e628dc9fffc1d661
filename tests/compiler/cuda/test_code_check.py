"""verify of a library's GPU code: PTX and cubin, their chip, and the kernels that the plan runs."""

import types

import pytest

from intformer.backends.cuda import code_check, sass, toolchain
from intformer.backends.cuda.backend import BACKEND
from intformer.errors import CompileError
from intformer.proof import code
from intformer_testing import cuda_compilers

SOURCE = """
extern "C" __global__ void copy__t4(const int *a, int *o, const int *counts) {
  if (threadIdx.x < counts[0]) o[threadIdx.x] = a[threadIdx.x];
}
extern "C" __global__ void add__t4(const int *a, int *o, const int *counts) {
  if (threadIdx.x < counts[0]) o[threadIdx.x] += a[threadIdx.x];
}
"""
LAUNCHES = {
    "copy": [{"function": "copy__t4", "threads": 128}],
    "add": [{"function": "add__t4", "threads": 128}],
}


def build(source=SOURCE, arch="sm_75"):
    built = toolchain.build(source, arch, compiler=cuda_compilers.any_compiler())
    if not toolchain.find_program("nvdisasm", sass.PACKAGES):
        pytest.skip(f"no nvdisasm: {sass.INSTALL}")
    return built


def judged(built, arch="sm_75", launches=LAUNCHES):
    detail, findings = code_check.check(built.cubin, built.ptx, arch, launches, "cuda/t4")
    assert "PTX" in detail
    return [f"{where}: {what}" for where, what in findings]


def test_sound_code_passes():
    assert judged(build()) == []


def test_code_for_another_chip_is_found():
    assert judged(build(), "sm_80") == [
        "cuda/t4.ptx: is for sm_75; the variant is for sm_80",
        "cuda/t4.cubin: is for sm_75; the variant is for sm_80",
    ]


def test_kernels_are_those_of_the_plan():
    other = {"copy": LAUNCHES["copy"], "sub": [{"function": "sub__t4", "threads": 128}]}
    assert judged(build(), launches=other) == [
        "cuda/t4.ptx, add__t4: is not a kernel that the library runs",
        "cuda/t4.ptx, sub__t4: is run, but is not there",
        "cuda/t4.cubin, add__t4: is not a kernel that the library runs",
        "cuda/t4.cubin, sub__t4: is run, but is not there",
    ]


def test_float_work_and_too_many_threads_are_found():
    built = build(SOURCE.replace("+= a[threadIdx.x]", "+= a[threadIdx.x] * 0.5f"))
    launches = {**LAUNCHES, "copy": [{"function": "copy__t4", "threads": 1 << 16}]}
    found = judged(built, launches=launches)
    assert any(line.startswith("cuda/t4.ptx, add__t4: float") for line in found)
    assert any(line.startswith("cuda/t4.cubin, add__t4+0x") and "I2F" in line for line in found)
    assert any("registers x 65536 threads" in line for line in found)
    assert not any("copy__t4+0x" in line for line in found)


def test_a_cubin_that_cannot_be_read_is_a_finding(monkeypatch):
    built = build()

    def fail(cubin):
        raise CompileError("SASS cannot be read: no nvdisasm", where="cubin", hint=sass.INSTALL)

    monkeypatch.setattr("intformer.backends.cuda.sass_check.disassemble", fail)
    (line,) = judged(built)
    assert "no nvdisasm" in line and "pip install" in line


def test_verify_reads_the_code_of_a_library(toy_path):
    """A library for GPUs as verify sees it: the toy's host code, with CUDA sections beside it."""
    built = build(SOURCE.replace("+= a[threadIdx.x]", "/= a[threadIdx.x]"))
    library = types.SimpleNamespace(
        path=toy_path,
        image=types.SimpleNamespace(machine=BACKEND.code.elf_machine),
        variants={"x86-64": [], "t4": []},
        metadata={"variants": [{"name": "x86-64", "arch": ""}, {"name": "t4", "arch": "sm_75"}]},
        plan={"launches": LAUNCHES},
        section={"cuda/t4.cubin": built.cubin, "cuda/t4.ptx": built.ptx}.__getitem__,
    )
    check = code.check_machine_code(library)
    assert not check.ok and check.ran
    assert {finding.where.partition("+")[0] for finding in check.findings} == {
        "cuda/t4.ptx, add__t4",
        "cuda/t4.cubin, add__t4",
    }
    assert "SASS instructions for sm_75" in check.detail
