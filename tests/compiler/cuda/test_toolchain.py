"""nvcc and NVRTC: what they build, what they say of it, and what they refuse."""

import pytest

from intformer.backends.cuda import toolchain
from intformer.backends.object_cache import ObjectCache
from intformer.errors import CompileError
from intformer.link.elf import Elf
from intformer_testing import cuda_compilers

KERNELS = """
#include <stdint.h>
extern "C" __global__ void add(const int8_t *a, int64_t *b, const int *counts) {
  __shared__ int8_t row[256];
  row[threadIdx.x] = a[threadIdx.x];
  __syncthreads();
  if (threadIdx.x < counts[0]) b[threadIdx.x] += row[255 - threadIdx.x];
}
extern "C" __global__ void __launch_bounds__(1024) spill(const volatile int *a, int *b) {
  int v[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) v[i] = a[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) b[i * 1024 + threadIdx.x] = v[i] * i + v[95 - i];
}
"""
BOTH = pytest.mark.parametrize("kind", ["nvcc", "nvrtc"])


@pytest.fixture
def no_toolkit(monkeypatch):
    """A machine without any of CUDA."""
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(toolchain, "HOMES", ())
    monkeypatch.setattr(toolchain, "package_files", lambda packages: [])
    monkeypatch.setattr(toolchain.ctypes.util, "find_library", lambda name: None)


@BOTH
def test_builds_cubin_ptx_and_usage(kind, tmp_path):
    built = toolchain.build(KERNELS, "sm_75", compiler=cuda_compilers.compiler(kind))
    (tmp_path / "a.cubin").write_bytes(built.cubin)
    code = {s.name for s in Elf(tmp_path / "a.cubin").sections if s.name.startswith(".text.")}
    assert code == {".text.add", ".text.spill"}
    assert b".target sm_75" in built.ptx and b".entry add(" in built.ptx
    assert not built.ptx.endswith(b"\0")
    add, spill = built.usage["add"], built.usage["spill"]
    assert (add.shared, add.spill_stores, add.spill_loads, add.stack) == (256, 0, 0, 0)
    assert 4 <= add.registers <= 32
    assert spill.registers <= 64 and min(spill.spill_stores, spill.spill_loads, spill.stack) >= 64


@BOTH
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            'extern "C" __global__ void f(int *a) {\n  a[0] = b;\n}',
            'error: identifier "b" is undefined - CUDA source, line 2: a[0] = b;',
        ),
        (
            'extern "C" __global__ void f(int *a) {\n  asm("nonsense;");\n}',
            "nonsense",
        ),
    ],
    ids=["C", "assembly"],
)
def test_names_the_first_error_in_one_line(kind, source, message):
    with pytest.raises(CompileError) as caught:
        toolchain.build(source, "sm_75", compiler=cuda_compilers.compiler(kind))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@BOTH
@pytest.mark.parametrize("arch", ["sm_10", "sm_999"])
def test_refuses_a_chip_it_does_not_know(kind, arch):
    with pytest.raises(CompileError) as caught:
        toolchain.build(KERNELS, arch, compiler=cuda_compilers.compiler(kind))
    assert "arch" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("arch", ["75", "compute_75", "sm_75 -G", ""])
def test_refuses_what_is_no_arch(arch):
    with pytest.raises(CompileError, match="arch"):
        toolchain.build(KERNELS, arch)


def test_says_what_to_install(no_toolkit):
    with pytest.raises(CompileError, match=r"no nvcc.*no NVRTC.*pip install 'intformer\[cuda\]'"):
        toolchain.find()


def test_takes_nvrtc_where_nvcc_has_no_gcc(monkeypatch):
    cuda_compilers.compiler("nvrtc")
    monkeypatch.delenv("NVCC_CCBIN", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert toolchain.find().version.startswith("NVRTC ")


def test_compiles_a_source_once(tmp_path):
    inner, compiled = cuda_compilers.any_compiler(), []
    cache = ObjectCache(tmp_path)

    def counted(source, arch):
        compiled.append(arch)
        return inner.compile(source, arch)

    def build(arch="sm_75", version="1", source=KERNELS, cache=cache):
        compiler = toolchain.Compiler(version, counted)
        return toolchain.build(source, arch, cache, compiler=compiler)

    first = build()
    assert build() == first and compiled == ["sm_75"]
    build(cache=None)
    build(arch="sm_80")
    build(version="2")
    build(source=KERNELS + "\n")
    assert compiled == ["sm_75", "sm_75", "sm_80", "sm_75", "sm_75"]


def test_a_folder_that_cannot_be_written_is_no_fault(tmp_path):
    (tmp_path / "file").write_text("")
    cache = ObjectCache(tmp_path / "file")
    compiler = cuda_compilers.any_compiler()
    built = toolchain.build(KERNELS, "sm_75", cache, compiler=compiler)
    assert built.usage.keys() == {"add", "spill"}
