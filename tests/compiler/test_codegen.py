"""Kernels are compiled one by one, and none that is known already."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import te

import intformer
from intformer.backends.cpu import codegen
from intformer.backends.object_cache import ObjectCache
from intformer.backends.targets import TARGETS
from intformer.frontend import import_model
from intformer.link.elf import Elf
from intformer_testing import random_hf

TARGET = TARGETS["x86-64"]


def kernel(name="k", add=1):
    n = te.var("n")
    x = te.placeholder((n,), "int32", name="x")
    func = te.create_prim_func([x, te.compute((n,), lambda i: x[i] + add, name="y")])
    return func.with_attr("global_symbol", name)


def module(*kernels):
    return tvm.IRModule({str(func.attrs["global_symbol"]): func for func in kernels})


@pytest.fixture
def made(monkeypatch):
    """Names of the kernels that LLVM was asked for."""
    names, compile_one = [], codegen._compile

    def record(function, target, path):
        names.append(path.stem)
        compile_one(function, target, path)

    monkeypatch.setattr(codegen, "_compile", record)
    return names


def test_one_object_per_kernel(tmp_path, made):
    lines = []
    paths = codegen.generate(
        module(kernel("a"), kernel("b", 2)), TARGET, tmp_path, tell=lines.append
    )
    assert [path.name for path in paths] == ["a.o", "b.o"] and sorted(made) == ["a", "b"]
    assert [Elf(p).symbols()[f"__tvm_ffi_{p.stem}"] for p in paths] == [True, True]
    assert [line[:10] for line in lines] == ["kernel 1/2", "kernel 2/2"]


def test_known_kernels_come_from_the_cache(tmp_path, made):
    cache = ObjectCache(tmp_path / "cache")
    both = module(kernel("a"), kernel("b", 2))
    folders = [tmp_path / str(i) for i in range(3)]
    for folder in folders:
        folder.mkdir()
    first = codegen.generate(both, TARGET, folders[0], cache)
    made.clear()
    again = codegen.generate(both, TARGET, folders[1], cache)
    assert made == []
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in first]
    codegen.generate(module(kernel("a"), kernel("b", 3)), TARGET, folders[2], cache)
    assert made == ["b"]


def test_a_corrupt_entry_is_made_again(tmp_path, made):
    cache = ObjectCache(tmp_path / "cache")
    (path,) = codegen.generate(module(kernel()), TARGET, tmp_path, cache)
    whole = path.read_bytes()
    entry = cache.folder / codegen.key(kernel(), TARGET)
    entry.write_bytes(entry.read_bytes()[:-1])
    made.clear()
    for expected in (["k"], ["k"]):  # made once, known the second time
        (path,) = codegen.generate(module(kernel()), TARGET, tmp_path, cache)
        assert path.read_bytes() == whole and made == expected


def test_what_the_key_depends_on(monkeypatch):
    keys = [
        codegen.key(kernel(), TARGET),
        codegen.key(kernel("other"), TARGET),
        codegen.key(kernel(add=2), TARGET),
        codegen.key(kernel(), TARGETS["cascadelake"]),
    ]
    monkeypatch.setattr(tvm, "__version__", "9.9")
    keys.append(codegen.key(kernel(), TARGET))
    assert len(set(keys)) == len(keys)


def test_the_key_is_the_same_in_another_process():
    code = "import test_codegen as t; print(t.codegen.key(t.kernel(), t.TARGET))"
    env = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=env,
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == codegen.key(kernel(), TARGET), result.stderr


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    lines = []
    cache = ObjectCache(tmp_path / "file" / "objects")
    (path,) = codegen.generate(module(kernel()), TARGET, tmp_path, cache, lines.append)
    assert path.exists()
    assert lines[-1] == f"objects are not kept: Not a directory - {cache.folder}"


def test_other_weights_need_no_code(tmp_path, made, monkeypatch):
    """The same shapes: every object is known, and the library still computes the new weights."""
    monkeypatch.setenv("INTFORMER_CACHE", str(tmp_path / "cache"))
    calls, rows = [], []
    for seed in (1, 2):
        random_hf.save(tmp_path / "model", "bert", "features", seed=seed)
        model = import_model(
            tmp_path / "model", calibrate=random_hf.sequences(seed=seed), method="minmax"
        )
        made.clear()
        library = intformer.compile(model, tmp_path / f"m{seed}.so", target="x86-64")
        calls.append(len(made))
        ids = random_hf.sequences((7,))[0]
        rows.append(library.run(ids, np.array([0, 7], np.int32)))
        assert intformer.verify(library).ok
    assert calls[0] == library.metadata["kernels"] and calls[1] == 0
    assert not np.array_equal(*rows)
    made.clear()
    intformer.compile(model, tmp_path / "n.so", target="x86-64", cache=False)
    assert len(made) == library.metadata["kernels"]
