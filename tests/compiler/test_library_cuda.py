"""The file of a library for a GPU: what is in it, what it needs, which plans are refused."""

import json
import lzma
import subprocess
from dataclasses import replace

import pytest

from intformer import runtime
from intformer.backends.cuda.backend import BACKEND
from intformer.errors import CompileError
from intformer.link import build as library
from intformer.link.elf import Elf
from intformer.runtime import footer
from intformer_testing import toy, toy_cuda

ALIGN = BACKEND.align


def build(folder, plan=None, variants=None, **options):
    plan = plan or toy_cuda.plan()
    variants = variants or [toy_cuda.variant(plan)]
    return library.build(plan, variants, toy.model(), folder / "libt.so", target="t4", **options)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return build(tmp_path_factory.mktemp("library"))


def test_sections(path):
    lib, code = runtime.load(path, run=False), toy_cuda.code(toy_cuda.plan())
    assert lib.section("cuda/t4.cubin") == code.cubin
    assert lib.section("cuda/t4.ptx") == code.ptx
    assert lzma.decompress(lib.section("cuda/t4.cu.xz")).decode() == code.source
    assert "tir/t4.json.xz" in lib.sections()
    add = lib.plan["launches"]["add"]
    assert [(v["function"], v["limit"], v["threads"]) for v in add] == [
        ("add_small", 8, 8),
        ("add", None, 32),
    ]
    for name in ("word", "factor"):
        assert (lib.tensor(name) == toy.tables(0)[name]).all()
        assert lib.tensor(name).ctypes.data % ALIGN == 0
    rows = lib.metadata["limits"]["max_rows"]
    assert rows % library.GPU_TILE == 0
    assert rows * toy.WIDTH * 4 < 2**31 <= (rows + library.GPU_TILE) * toy.WIDTH * 4  # int32 bytes


def test_a_zero_follows_the_ptx(tmp_path):
    """The driver reads it as a C string, whatever its length."""
    plan = toy_cuda.plan()
    code = toy_cuda.code(plan)
    ptx = code.ptx.ljust(-(-len(code.ptx) // ALIGN) * ALIGN)
    variant = replace(toy_cuda.variant(plan), carried=replace(code, ptx=ptx).carried("t4"))
    data = build(tmp_path, plan, [variant]).read_bytes()
    assert data[data.index(ptx) + len(ptx)] == 0


def test_needs_libc_alone_and_hides_its_symbols(path):
    assert set(Elf(path).needed()) <= library.NEEDED
    assert Elf(path).glibc_floor() <= library.GLIBC_FLOOR
    out = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True)
    assert {line.split()[-1] for line in out.stdout.splitlines()} == {
        "intformer_get",
        "intformer_get_t",
    }


def test_code_is_integer_only(path):
    pytest.importorskip("iced_x86")
    from intformer.backends.x86 import machine_code

    assert not machine_code.check(path).findings


def test_same_input_same_file(path, tmp_path):
    assert build(tmp_path).read_bytes() == path.read_bytes()
    plan = toy_cuda.plan()
    plan.launches["relu"] = [replace(plan.launches["relu"][0], threads=64)]
    other = build(tmp_path, plan)
    assert footer.check(other).build_id != footer.check(path).build_id


def test_several_chips(tmp_path):
    plan = toy_cuda.plan()
    variants = [toy_cuda.variant(plan, f"cuda:sm_{n}", f"sm_{n}") for n in (90, 75)]
    lib = runtime.load(build(tmp_path, plan, variants), run=False)
    assert [v["arch"] for v in lib.metadata["variants"]] == ["sm_90", "sm_75"]
    assert lib.section("cuda/cuda:sm_90.cubin") == toy_cuda.code(plan).cubin


@pytest.mark.skipif(not library.importlib.util.find_spec("ziglang"), reason="no ziglang")
def test_zig_in_place_of_cc(tmp_path, monkeypatch):
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    assert Elf(build(tmp_path)).glibc_floor() <= library.GLIBC_FLOOR


def launch(**changes):
    plan = toy_cuda.plan()
    plan.launches["relu"] = [replace(plan.launches["relu"][0], **changes)]
    return plan


def limits(*limits):
    plan = toy_cuda.plan()
    (version,) = plan.launches["relu"]
    plan.launches["relu"] = [replace(version, limit=limit) for limit in limits]
    return plan


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        (limits(), r"limits \[\]: the last version alone has none.*step 2, kernel relu"),
        (limits(8), r"limits \[8\]: the last version alone has none"),
        (limits(None, None), r"limits \[None, None\]"),
        (limits(8, 8, None), r"limits \[8, 8, None\] do not grow"),
        (limits(9, 8, None), r"limits \[9, 8, None\] do not grow"),
        (launch(rows="head"), "limit counts 'head' rows.*function relu"),
        (launch(threads=0), "0 threads of a block"),
        (launch(threads=1025), "1025 threads of a block - 1 to 1024"),
        (launch(shared=49153), "49153 bytes of shared memory - at most 49152"),
        (launch(grid=(("token", 1, 1),)), "grid"),
        (launch(grid=(("token", 0, 1),) * 3), "grid"),
        (launch(grid=(("rows", 1, 1),) * 3), "grid"),
    ],
)
def test_bad_launches(tmp_path, plan, match):
    with pytest.raises(CompileError, match=match) as caught:
        build(tmp_path, plan, [toy_cuda.variant(toy_cuda.plan())])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_bad_code(tmp_path):
    plan = toy_cuda.plan()
    good = toy_cuda.variant(plan)

    def refused(match, **changes):
        with pytest.raises(CompileError, match=match):
            build(tmp_path, plan, [replace(good, **changes)])

    def carrying(**changes):
        return replace(toy_cuda.code(plan), **changes).carried("t4")

    refused("the plan has launches, the variant no code for a GPU", carried={})
    refused("the cubin is no ELF file", carried=carrying(cubin=b"text"))
    refused("GPU architecture 'sm_90a'", arch="sm_90a")
    refused("GPU architecture ''", arch="")
    ptx = toy_cuda.code(plan).ptx.replace(b"relu", b"gelu")
    refused("function 'relu' is not in the PTX", carried=carrying(ptx=ptx))


def test_a_plan_without_launches_takes_no_gpu_code(tmp_path):
    with pytest.raises(CompileError, match="the plan says of no kernel how it is launched"):
        build(tmp_path, toy.plan(), [toy_cuda.variant(toy_cuda.plan())])


def test_a_cpu_library_has_no_launches(toy_path):
    lib = runtime.load(toy_path)
    assert json.loads(lib.section("plan.json"))["launches"] == {}
    assert not lib.on_device
    assert lib.device is None
