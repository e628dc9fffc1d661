"""MODEL.check: the program that proves a library on the machine that it is for."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from intformer import cli, pipeline
from intformer.errors import CompileError
from intformer.ir.model import IntModel
from intformer.link import build as linker
from intformer.link import check
from intformer.proof.tensors import carried_tensors
from intformer.runtime import Library, LibraryFile, footer
from intformer_testing import emulated, golden_models, random_hf, small_tokenizer
from intformer_testing.libc import needs_zig
from intformer_testing.small_tokenizer import SENTENCES

SHAPE = {"hidden": 32, "heads": 1, "layers": 1, "ffn": 48, "labels": 3, "activation": "relu"}
FACTOR = 6364136223846793005


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A classifier for every x86 chip with its check, compiled by the verb with real texts."""
    folder = tmp_path_factory.mktemp("check")
    random_hf.save(folder / "source", "bert", "sequence-classification", **SHAPE)
    small_tokenizer.save(folder / "source")
    (folder / "texts.txt").write_text("\n".join(SENTENCES[:40]))
    path = folder / "model.so"
    arguments = ["compile", folder / "source", "-o", path, "--calibrate", folder / "texts.txt"]
    arguments += ["--method", "minmax", "--target", "x86-auto", "--check"]
    assert cli.main([str(one) for one in arguments]) == 0
    return path


def run(program, *arguments, **options):
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=300, **options
    )
    return done.returncode, done.stdout, done.stderr


def altered(path, to, section, at, value):
    """Copy a library with other bytes in a section; length and checksum are right again."""
    library = LibraryFile(path)
    data = bytearray(path.read_bytes()[: library.footer.elf])
    mark = library.section(section)
    assert len(mark) > 64 and data.count(mark) == 1
    start = data.index(mark) + at
    data[start : start + len(value)] = value
    to.write_bytes(data)
    footer.append(to, library.footer.glibc, library.footer.build_id)
    return to


def largest(library):
    """The section of the embedding of words: every answer depends on it."""
    return max((n for n in library.sections() if n.startswith("constants/")), key=len_of(library))


def len_of(library):
    return lambda name: len(library.section(name))


def test_a_sound_library(made):
    code, out, err = run(made.with_suffix(".check"), "--json", "--runs", "4")
    assert (code, err) == (0, "")
    found = json.loads(out)
    library = Library(made)
    refusals = library.refusals()
    assert {name: bool(why) for name, why in found["variants"].items()} == {
        name: bool(why) for name, why in refusals.items()
    }
    longest = library.metadata["max_length"]
    random = 6 + 6 + 6 + 8 + 1  # alone, mixed, the same with defaults, equal, the longest
    sequences = random + 1 + 16  # and the real ones
    library.set_threads(0)
    times = 2 if library.threads > 1 else 1
    assert found["outputs"] == sequences * 3 * list(refusals.values()).count("") * times
    assert {(t["batch"], t["tokens"]) for t in found["times"]} == {
        (1, 16),
        (1, longest),
        (8, longest),
    }
    for one in found["times"]:
        assert one["runs"] == 4 and 0 < one["median_ms"] <= one["p95_ms"]
    assert found["ok"] is True and found["exit"] == 0
    assert int(found["peak_memory"].split()[0]) > 1000
    assert "sse2" in found["features"].split()


def test_as_text(made):
    code, out, _ = run(made.with_suffix(".check"), "--runs", "0")
    assert code == 0
    assert "\nbit-exact: " in out and "median" not in out
    assert out.splitlines()[0] == f"library: {made}"


def test_only_the_c_library_is_needed(made):
    needed = linker.Elf(made.with_suffix(".check")).needed()
    assert set(needed) <= {"libc.so.6", "libdl.so.2", "libpthread.so.0"}
    assert made.with_suffix(".check").stat().st_size < 100_000


def test_the_cases_cover_what_they_should(made):
    library = LibraryFile(made)
    model = carried_model(library)
    found = check.cases(library, model, [(text,) for text in SENTENCES[:40]])
    lengths = [tuple(np.diff(case.inputs["cu_seqlens"])) for case in found]
    assert (1,) in lengths and (model.meta["max_length"],) in lengths
    assert any(n % 2 for (n,) in (one for one in lengths if len(one) == 1) if n > 1)
    assert sum(len(one) > 1 for one in lengths) >= 4
    assert [case.name for case in found if "real" in case.name] == [
        "real, 1 sequences",
        "real, 16 sequences",
    ]
    assert sum("position_ids" not in case.inputs for case in found) == 1
    for case in found:
        run = Library(made).run(**case.inputs)
        np.testing.assert_array_equal(run, case.wanted)


def carried_model(library):
    return IntModel.from_json(library.graph(), carried_tensors(library), library.files())


def test_a_model_of_long_texts_is_run_up_to_a_limit(made, monkeypatch):
    monkeypatch.setattr(check, "LONGEST", 9)
    library = LibraryFile(made)
    found = check.cases(library, carried_model(library), [])
    assert max(np.diff(case.inputs["cu_seqlens"]).max() for case in found) == 9


def test_an_altered_weight(made, tmp_path):
    library = LibraryFile(made)
    path = altered(made, tmp_path / "other.so", largest(library), 0, bytes(range(1, 65)) * 8)
    code, out, err = run(made.with_suffix(".check"), path, "--runs", "0")
    assert (code, err) == (1, "")
    last = out.splitlines()[-2]
    number, row, channel, wanted, got = numbers_in(last)
    case = check.cases(library, carried_model(library), [(t,) for t in SENTENCES[:40]])[number]
    assert case.name in last
    assert wanted == case.wanted[row, channel]
    assert got == Library(path).run(**case.inputs)[row, channel] != wanted
    code, out, _ = run(made.with_suffix(".check"), path, "--json")
    found = json.loads(out)
    assert code == found["exit"] == 1 and not found["ok"] and "times" not in found
    assert found["difference"]["expected"] == wanted
    assert found["difference"]["got"] == got


def numbers_in(line):
    """Read case, row, channel, expected and got."""
    pattern = r"DIFFERENT: case (\d+) \(.*\), variant \S+, \d+ threads: output \[(\d+), (\d+)\]: "
    return [int(n) for n in re.fullmatch(pattern + r"expected (-?\d+), got (-?\d+)", line).groups()]


def test_rows_of_which_a_hash_is_kept(made, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "WHOLE", 0)
    library = LibraryFile(made)
    program = check.build(library, carried_model(library), tmp_path / "model.check")
    assert run(program, made, "--runs", "0")[0] == 0
    path = altered(made, tmp_path / "other.so", largest(library), 0, bytes(range(1, 65)) * 8)
    code, out, _ = run(program, path, "--runs", "0")
    assert code == 1 and ": row 0: expected a row of hash " in out


def test_hashes_by_hand():
    rows = np.array([[3, -1], [3, -1], [3, 2], [-(2**31), 2**31 - 1]], np.int32)
    wanted = []
    for row in rows:
        total = 0
        for number in row.tolist():
            total = (total * FACTOR + number % 2**32 + 1) % 2**64
        wanted.append(total)
    assert check.row_hashes(rows).tolist() == wanted
    assert wanted[0] == wanted[1] != wanted[2]


def test_a_library_that_it_cannot_run(made, tmp_path):
    program = made.with_suffix(".check")
    foreign = bytearray(made.read_bytes()[: footer.check(made).elf])
    foreign[18] = 183
    (tmp_path / "foreign.so").write_bytes(foreign)
    footer.append(tmp_path / "foreign.so", (2, 2), bytes(32))
    (tmp_path / "cut.so").write_bytes(made.read_bytes()[:5000])
    for name, words in {
        "foreign.so": "library has code for ELF machine 183, this program runs 62",
        "cut.so": "not an intformer library, or cut short",
        "none.so": "cannot open library",
    }.items():
        code, out, err = run(program, tmp_path / name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"error: {words}") and name in err


def test_alone_and_with_wrong_arguments(made, tmp_path):
    shutil.copy(made.with_suffix(".check"), tmp_path / "model.check")
    code, _, err = run("./model.check", cwd=tmp_path)
    assert code == 2 and f"cannot open library - {tmp_path}/model.so" in err
    for wrong in (["--runs"], ["--runs", "x"], ["--runs", "-1"], ["--what"], ["a", "b"]):
        code, _, err = run(tmp_path / "model.check", *wrong)
        assert code == 2 and err.startswith("usage: "), wrong


def test_another_model(made, tmp_path, toy_library):
    code, _, err = run(made.with_suffix(".check"), toy_library())
    assert code == 2 and "library has 10 output channels, not 3: another model" in err


def test_nothing_is_left_where_it_cannot_be_written(tmp_path, monkeypatch):
    model = golden_models.cases()["native/bert/one type"](tmp_path)
    with pytest.raises(CompileError, match="has the name of its check"):
        pipeline.compile(model, tmp_path / "a.check", target="x86-64", check=True)

    def fails(*arguments):
        raise CompileError("no compiler")

    monkeypatch.setattr(check, "build", fails)
    with pytest.raises(CompileError, match="no compiler"):
        pipeline.compile(model, tmp_path / "new" / "a.so", target="x86-64", check=True)
    assert not os.listdir(tmp_path / "new")


# ---- musl ----

LOADER = Path("/lib/ld-musl-x86_64.so.1")


@needs_zig
@pytest.mark.skipif(not LOADER.exists(), reason=f"this machine lacks {LOADER} (package musl)")
def test_for_musl(made, tmp_path):
    library = LibraryFile(made)
    program = check.build(library, carried_model(library), tmp_path / "m.check", musl=True)
    assert linker.Elf(program).needed() == ["libc.so"]
    assert LOADER.name.encode() in program.read_bytes()
    code, out, err = run(program, made, "--json", "--runs", "2")
    assert (code, err) == (0, "")
    assert json.loads(out)["ok"]
    path = altered(made, tmp_path / "other.so", largest(library), 0, bytes(range(1, 65)) * 8)
    assert run(program, path, "--runs", "0")[0] == 1


def test_musl_without_a_check_is_refused(made, tmp_path):
    with pytest.raises(CompileError, match="musl is for a check alone"):
        pipeline.compile(carried_model(LibraryFile(made)), tmp_path / "a.so", musl=True)
    assert not os.listdir(tmp_path)


# ---- other machines ----


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A library for ARM with its check."""
    folder = tmp_path_factory.mktemp("foreign")
    model = golden_models.cases()["native/bert/sentence-embedding"](folder)
    pipeline.compile(model, folder / "model.so", target="aarch64-dotprod", check=True)
    return folder / "model.so"


def emulate(path, *arguments, cpu="", options=()):
    machine = int.from_bytes(path.read_bytes()[18:20], "little")
    emulator, root = emulated.HERE[machine]
    cpu = cpu or emulated.ALL[machine]
    return run(emulator, "-cpu", cpu, *options, "-L", root, path, *arguments)


@pytest.mark.parametrize(
    "target",
    [
        emulated.needs("riscv64"),
        emulated.needs("riscv64-v"),
        pytest.param(*emulated.needs("aarch64").values, marks=pytest.mark.slow),
        pytest.param(*emulated.needs("aarch64-i8mm").values, marks=pytest.mark.slow),
    ],
)
def test_every_family_proves_its_libraries(target, tmp_path):
    model = golden_models.cases()["native/bert/sequence-classification"](tmp_path)
    pipeline.compile(model, tmp_path / "m.so", target=target, check=True)
    code, out, err = emulate(tmp_path / "m.check", "--json", "--runs", "2")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["ok"] and found["outputs"] > 40 and len(found["times"]) >= 3
    section = largest(LibraryFile(tmp_path / "m.so"))
    path = altered(tmp_path / "m.so", tmp_path / "b.so", section, 0, bytes(range(1, 65)) * 8)
    assert emulate(tmp_path / "m.check", path, "--runs", "0")[0] == 1


@pytest.mark.parametrize("target", [emulated.needs("aarch64-dotprod")])
@pytest.mark.parametrize("page", [4096, 65536])
def test_on_pages_of_any_size(foreign, target, page):
    code, out, err = emulate(
        foreign.with_suffix(".check"), "--json", "--runs", "3", options=("-p", str(page))
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["ok"] and found["outputs"] >= 22 * 32 and len(found["times"]) >= 3


@pytest.mark.parametrize("target", [emulated.needs("aarch64-dotprod")])
def test_another_machine_says_what_is_wrong(foreign, made, target, tmp_path):
    program = foreign.with_suffix(".check")
    code, _, err = emulate(program, cpu="cortex-a53")
    assert code == 2 and "this CPU (or the system) lacks dotprod" in err and err.count("\n") == 1
    code, _, err = emulate(program, made)
    assert code == 2 and "code for ELF machine 62, this program runs 183" in err
    section = largest(LibraryFile(foreign))
    path = altered(foreign, tmp_path / "other.so", section, 0, bytes(range(1, 65)) * 8)
    code, out, _ = emulate(program, path, "--runs", "0")
    assert code == 1 and "\nDIFFERENT: case " in out
