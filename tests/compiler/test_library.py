import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import intformer
from intformer import runtime
from intformer.errors import CompileError, LibraryError
from intformer.ir.plan import Buffer, Plan, Step
from intformer.link import build as library
from intformer.link.elf import Elf
from intformer.passes.memory import assign_slots, block_bytes, bytes_per_row
from intformer.runtime import footer
from intformer_testing import toy

# ---- what is in the file ----


def test_needs_libc_libm_libpthread_alone(toy_path):
    listed = subprocess.run(["readelf", "-dW", toy_path], capture_output=True, text=True).stdout
    needed = [line.split("[")[1].rstrip("]") for line in listed.splitlines() if "(NEEDED)" in line]
    assert needed == Elf(toy_path).needed()
    assert needed
    assert set(needed) <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}
    assert "NODELETE" in listed
    assert "SYMBOLIC" in listed


def test_exports_the_two_entries_alone(toy_path):
    out = subprocess.run(
        ["nm", "-D", "--defined-only", toy_path], capture_output=True, text=True
    ).stdout
    assert {line.split()[-1] for line in out.splitlines()} == {
        "intformer_get",
        "intformer_get_toy",
    }


def test_code_is_integer_only(toy_path):
    pytest.importorskip("iced_x86")
    from intformer.backends.x86 import machine_code

    assert not machine_code.check(toy_path).findings


def test_glibc_floor_is_stated_and_enforced(toy_path, toy_library, monkeypatch):
    floor = Elf(toy_path).glibc_floor()
    assert (2, 2) < floor <= library.GLIBC_FLOOR
    assert footer.check(toy_path).glibc == floor
    assert runtime.load(toy_path).metadata["glibc"] == f"{floor[0]}.{floor[1]}"
    monkeypatch.setattr(library, "GLIBC_FLOOR", (2, 5))
    with pytest.raises(CompileError, match=r"needs glibc 2\.\d+, newer than the promised 2\.5"):
        toy_library("floor")
    monkeypatch.setattr(runtime.library, "_glibc", lambda: (2, 4))
    with pytest.raises(LibraryError, match=r"needs glibc .* this system has 2\.4"):
        runtime.load(toy_path)


def test_sections(toy_path):
    lib = runtime.load(toy_path)
    tables, model = toy.tables(0), toy.model(0)
    for name, array in tables.items():
        got = lib.tensor(name)
        np.testing.assert_array_equal(got, array)
        assert got.dtype == array.dtype
        assert got.ctypes.data % 64 == 0
        with pytest.raises(ValueError, match="read-only"):
            got[...] = 0
    assert lib.graph() == json.loads(json.dumps(model.to_json()))
    assert lib.files() == model.files
    assert lib.packing["word"] == {
        "dtype": "int16",
        "shape": [toy.VOCAB, toy.WIDTH],
        "packing": {"kind": "rows"},
    }
    digest = hashlib.sha256(tables["word"].tobytes()).hexdigest()
    assert lib.json("tensors.json")["word"]["sha256"] == digest
    assert lib.plan["output"] == "scaled"
    assert [s["kernel"] for s in lib.plan["steps"]] == ["embed", "add", "relu", "scale"]
    about = lib.metadata
    assert about["intformer"] == intformer.__version__
    assert about["name"] == "toy"
    assert about["output_channels"] == toy.CHANNELS
    assert about["recipe"] == "native"
    assert set(lib.sections()) >= {"constants/word", "files/tokenizer.json", "tir/x86-64.json.xz"}
    with pytest.raises(LibraryError, match="no section 'nope'"):
        lib.section("nope")
    with pytest.raises(LibraryError, match="no constant 'nope'"):
        lib.tensor("nope")


def test_same_input_same_file(toy_library):
    one, other = toy_library("same"), toy_library("same")
    assert one.read_bytes() == other.read_bytes()
    changed = toy_library("same", metadata={"more": 1})
    assert footer.check(one).build_id != footer.check(changed).build_id


@pytest.mark.parametrize(
    ("file", "name"),
    [("libbert-base.v2.so", "bert_base"), ("7b.so", "m7b"), ("é x.so", "__x")],
)
def test_name_comes_from_the_file(toy_variant, tmp_path, file, name):
    path = library.build(toy.plan(), [toy_variant], toy.model(), tmp_path / file, target="x86-64")
    assert runtime.load(path).metadata["name"] == name
    assert f"intformer_get_{name}" in Elf(path).symbols()


def test_header_goes_beside_it(toy_path):
    headers = ["intformer.h", "intformer.hpp", "intformer_open.c"]
    for name in headers:
        assert (toy_path.parent / name).read_bytes() == (library.SOURCES / name).read_bytes()
    assert sorted(p.name for p in toy_path.parent.iterdir()) == [*headers, "libtoy.so"]


def test_abi_version_is_the_header_s():
    assert (
        f"#define INTFORMER_ABI_VERSION {footer.ABI_VERSION}\n"
        in (library.SOURCES / "intformer.h").read_text()
    )


# ---- faults ----


def refused(tmp_path, plan, variants, model, match):
    with pytest.raises(CompileError, match=match) as caught:
        library.build(plan, variants, model, tmp_path / "out" / "libx.so", target="x86-64")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*")), "half-written"


def test_no_c_compiler(tmp_path, toy_variant, monkeypatch):
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    refused(tmp_path, toy.plan(), [toy_variant], toy.model(), "no C compiler.*pip install ziglang")


def test_compiler_that_fails(tmp_path, toy_variant, monkeypatch):
    monkeypatch.setattr(library, "compiler", lambda *_: ["false"])
    refused(tmp_path, toy.plan(), [toy_variant], toy.model(), "compiling failed: exit code 1")


@pytest.mark.parametrize("content", [None, b"neither a program nor a script"])
def test_compiler_that_does_not_start(tmp_path, toy_variant, monkeypatch, content):
    cc = tmp_path / "bin" / "cc"
    cc.parent.mkdir()
    if content:
        cc.write_bytes(content)
        cc.chmod(0o755)
    monkeypatch.setattr(library, "compiler", lambda *_: [str(cc)])
    error = "cannot start the C compiler: .*bin/cc"
    refused(tmp_path, toy.plan(), [toy_variant], toy.model(), error)


@pytest.mark.parametrize("file", ["a,b.so", "a b.so"])
def test_the_file_name_is_the_soname(toy_variant, tmp_path, file):
    path = library.build(
        toy.plan(), [toy_variant], toy.model(), tmp_path / file, target="x86-64", name="toy"
    )
    ids, offsets = toy.batch(0, (3, 9))
    np.testing.assert_array_equal(
        runtime.load(path).run(ids, offsets), toy.expected(0, ids, offsets)
    )
    listed = subprocess.run(["readelf", "-dW", path], capture_output=True, text=True).stdout
    assert f"Library soname: [{file}]" in listed


@pytest.mark.skipif(not library.importlib.util.find_spec("ziglang"), reason="no ziglang")
def test_zig_in_place_of_cc(toy_library, monkeypatch):
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    assert library.compiler()[0] == sys.executable
    path = toy_library("zig")
    assert Elf(path).glibc_floor() <= (2, 17)
    ids, offsets = toy.batch(0, (3, 9))
    np.testing.assert_array_equal(
        runtime.load(path).run(ids, offsets), toy.expected(0, ids, offsets)
    )


def test_previous_library_stays_when_a_build_fails(toy_variant, tmp_path):
    path = tmp_path / "libx.so"
    path.write_text("before")
    plan = toy.plan()
    plan.steps.append(Step("nowhere", ("scaled", "scaled"), ()))
    with pytest.raises(CompileError, match=r"kernel is in no object file.*kernel nowhere"):
        library.build(plan, [toy_variant], toy.model(), path, target="x86-64")
    assert path.read_text() == "before"


def test_bad_plans(tmp_path, toy_variant):
    def changed(**changes):
        return Plan(**{**vars(toy.plan()), **changes})

    def check(plan, match, model=None, **changes):
        variant = replace(toy_variant, **changes)
        refused(tmp_path, plan, [variant], model or toy.model(), match)

    steps = toy.plan().steps
    check(changed(inputs=("input_ids",)), "'token_type_ids' is missing in plan.inputs")
    check(changed(steps=[*steps, Step("relu", ("no", "e"), ())]), "unknown argument 'no'")
    check(changed(output="no"), "output 'no' is not an int32 buffer")
    check(toy.plan(), "unknown CPU feature 'mmx3'", features=["sse3", "mmx3"])
    for key in ("vocab_size", "max_length", "position_rule"):
        model = toy.model()
        del model.meta[key]
        check(toy.plan(), f"'{key}'", model)
    check(toy.plan(), "'sideways'", toy.model(position_rule="sideways"))


def test_a_kernel_that_calls_back_into_tvm(tmp_path, toy_variant):
    source = tmp_path / "hook.c"
    source.write_text("void *__TVMFFIFunctionCall __attribute__((weak));")
    subprocess.run(["cc", "-c", source, "-o", tmp_path / "hook.o"], check=True)
    variant = replace(toy_variant, objects=[*toy_variant.objects, tmp_path / "hook.o"])
    refused(tmp_path, toy.plan(), [variant], toy.model(), "kernels call __TVMFFIFunctionCall")


def test_an_unknown_symbol(tmp_path, toy_variant):
    source = tmp_path / "kernel.c"
    source.write_text(
        "int nobody_has_this(void); int __tvm_ffi_k__x86_64(void) { return nobody_has_this(); }"
    )
    subprocess.run(["cc", "-c", "-fPIC", source, "-o", tmp_path / "kernel.o"], check=True)
    plan = toy.plan()
    plan.steps.insert(0, Step("k", ("e",), ()))
    variant = replace(toy_variant, objects=[*toy_variant.objects, tmp_path / "kernel.o"])
    refused(tmp_path, plan, [variant], toy.model(), "linking failed: .*nobody_has_this")


def test_no_object_file(tmp_path):
    (tmp_path / "text.o").write_text("no ELF")
    variant = library.Variant("x86-64", [tmp_path / "text.o"])
    refused(tmp_path, toy.plan(), [variant], toy.model(), "not a little-endian ELF file")


# ---- footer ----


@pytest.mark.parametrize("keep", [0, 10, 63, 64, 5000, -65, -64, -1])
def test_truncated(toy_path, tmp_path, keep):
    path = tmp_path / "cut.so"
    path.write_bytes(toy_path.read_bytes()[:keep])
    with pytest.raises(LibraryError, match=r"cut short.*copy it again"):
        runtime.load(path)


@pytest.mark.parametrize("at", [0, 100, 9000, -65, -64, -50, -45, -30, -5, -1])
def test_altered(toy_path, tmp_path, at):
    data = bytearray(toy_path.read_bytes())
    data[at] ^= 1
    path = tmp_path / "altered.so"
    path.write_bytes(data)
    with pytest.raises(LibraryError, match=r"altered|damaged|not an intformer library"):
        runtime.load(path)


def test_grown(toy_path, tmp_path):
    data = toy_path.read_bytes()
    (tmp_path / "grown.so").write_bytes(data[:-64] + b"more" + data[-64:])
    with pytest.raises(LibraryError, match=r"damaged: .* expected"):
        runtime.load(tmp_path / "grown.so")


def test_missing_file_and_other_libraries(tmp_path):
    with pytest.raises(LibraryError, match="cannot open library: No such file"):
        runtime.load(tmp_path / "none.so")
    shutil.copy(Path(sys.executable).resolve(), tmp_path / "other.so")
    with pytest.raises(LibraryError, match="not an intformer library"):
        runtime.load(tmp_path / "other.so")


# ---- memory plan ----


def chain(widths: list[tuple[int, str]], reads: list[list[int]]) -> Plan:
    """Step i writes buffer i and reads some earlier ones."""
    buffers = {
        f"b{i}": Buffer(f"b{i}", "int32", rows, 16 * width, 16 * width)
        for i, (width, rows) in enumerate(widths)
    }
    steps = [
        Step("k", (*(f"b{r}" for r in read), f"b{i}"), (f"b{i}",)) for i, read in enumerate(reads)
    ]
    return Plan(steps, buffers, {}, f"b{len(widths) - 1}", ())


@st.composite
def plans(draw):
    count = draw(st.integers(1, 12))
    rows = st.sampled_from(["token", "sequence", "position"])
    widths = draw(st.lists(st.tuples(st.integers(1, 8), rows), min_size=count, max_size=count))
    reads = [
        draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else []
        for i in range(count)
    ]
    return chain(widths, reads)


@settings(max_examples=100, deadline=None)
@given(plans())
def test_buffers_in_use_never_share_a_slot(plan):
    slot_of, slots = assign_slots(plan)
    first, last = {}, {}
    for number, step in enumerate(plan.steps):
        for name in step.args:
            first.setdefault(name, number)
            last[name] = number
    last[plan.output] = len(plan.steps)
    names = list(slot_of)
    for i, a in enumerate(names):
        assert slots[slot_of[a]].bytes[plan.buffers[a].rows] >= block_bytes(plan.buffers[a])
        for b in names[i + 1 :]:
            if slot_of[a] == slot_of[b]:
                assert last[a] < first[b] or last[b] < first[a], (a, b)


def test_slots_are_reused():
    plan = chain([(1, "token")] * 50, [[i - 1] if i else [] for i in range(50)])
    slot_of, slots = assign_slots(plan)
    assert len(slots) == 2
    assert len(slot_of) == 50


def test_an_output_nobody_writes():
    plan = chain([(1, "token")], [[]])
    plan.output = "other"
    with pytest.raises(CompileError, match="no step writes the output buffer 'other'"):
        assign_slots(plan)


def test_bytes_of_a_row():
    """Two buffers of 16 numbers are live at once; rows of the output are sequences."""
    plan = chain([(1, "token"), (1, "token"), (2, "sequence")], [[], [0], [1]])
    width = plan.buffers["b0"].width
    size = width * np.dtype(plan.buffers["b0"].dtype).itemsize
    assert bytes_per_row(plan)["token"] == 2 * size
    assert bytes_per_row(plan)["position"] == 0
