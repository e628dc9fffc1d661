"""A race on a machine that lacks things, and between libraries that look alike."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from intformer.cli.bench import race_lines
from intformer.ir.model import IntModel, Node, Value
from intformer.link import build as library
from intformer.measure import bench, roofline


def test_no_roof_without_a_c_compiler(monkeypatch):
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(roofline.Path, "read_text", lambda path: "flags : avx512_vnni")
    assert roofline.peak_meter("vnni") is None
    assert roofline.read_meter() is None


@pytest.mark.parametrize("unit", ["vnni", "amx"])
def test_the_roof_is_measured(unit):
    meter = roofline.peak_meter(unit)
    if meter is None:
        pytest.skip(f"no {unit} unit here")
    speed = meter(1)
    if not speed:
        pytest.skip(f"the kernel refuses {unit}")
    assert 1e9 < speed < 1e14  # one multiply-add a nanosecond would be no unit at all


def contestant(path, name="a"):
    """What `named` and `run` read of a library."""
    about = {"name": name, "recipe": "native", "target": "x86-64"}
    return SimpleNamespace(
        path=Path(path), metadata=about, set_threads=lambda n: None, run=lambda **inputs: None
    )


def test_names_are_unique():
    libraries = [contestant(path) for path in ("x/a.so", "y/a.so", "x/a.so", "x/a.so")]
    libraries.append(contestant("b.so", "b"))
    found = bench.named(libraries)
    assert list(found) == [
        "a, native, x86-64 (x/a.so)",
        "a, native, x86-64 (y/a.so)",
        "a, native, x86-64 (x/a.so) #2",
        "a, native, x86-64 (x/a.so) #3",
        "b, native, x86-64",
    ]
    assert list(found.values()) == libraries


def test_a_rival_that_is_wrong_is_named(monkeypatch):
    files = {"a.so": contestant("a.so"), "b.so": contestant("b.so", "b")}
    inputs = {"cu_seqlens": np.array([0, 4])}
    monkeypatch.setattr(bench, "load", files.__getitem__)
    monkeypatch.setattr(bench, "raced_inputs", lambda *options: inputs)
    monkeypatch.setattr(bench, "given", lambda contestant, inputs: {})
    monkeypatch.setattr(bench, "op_times", lambda *options, **more: [])
    monkeypatch.setattr(bench, "described", lambda *options: "a race")
    verdict = {"a": SimpleNamespace(ok=True), "b": SimpleNamespace(ok=False)}
    monkeypatch.setattr(bench, "verify", lambda one, **options: verdict[one.metadata["name"]])
    race = bench.bench("a.so", against=["b.so"], seconds=0.1)
    assert not race.verified
    assert race.unverified == ["b, native, x86-64"]
    assert race_lines(race)[-1] == "raced libraries: NOT verified: b, native, x86-64"


@pytest.fixture
def program():
    """What `roofline` reads of a library: one product, rows picked, over 3 tokens of 2 texts."""
    nodes = [
        Node("embed", ("input_ids", "table"), ("e",), {}),
        Node("matmul", ("e", "w", "b"), ("acc",), {}),
        Node("rescale", ("acc", "mult"), ("y",), {}),
        Node("attention", ("y", "cu_seqlens"), ("z",), {"heads": 2, "head_dim": 8}),
        Node("take_rows", ("z", "cu_seqlens"), ("first",), {}),
    ]
    kinds = {"e": "token", "acc": "token", "y": "token", "z": "token", "first": "sequence"}
    values = {name: Value("int8", rows, 16, 1.0, "") for name, rows in kinds.items()}
    graph = IntModel(nodes, {}, values, "first", {}).to_json()
    buffers = {
        name: {"rows": rows, "width": 16, "dtype": "uint8"}
        for name, rows in kinds.items()
        if name != "acc"
    }
    steps = [
        {"kernel": "embed_0", "args": ["input_ids", "table", "e"], "outputs": ["e"]},
        {"kernel": "dense_0", "args": ["e", "w", "b", "mult", "y"], "outputs": ["y"]},
        {"kernel": "attention_0", "args": ["y", "cu_seqlens", "z"], "outputs": ["z"]},
        {"kernel": "take_rows_0", "args": ["z", "cu_seqlens", "first"], "outputs": ["first"]},
    ]
    tensors = {
        "table": {"shape": [1000, 16], "dtype": "int8"},
        "w": {"shape": [16, 16], "dtype": "int8"},
        "b": {"shape": [16], "dtype": "int32"},
        "mult": {"shape": [16], "dtype": "int32"},
    }
    return SimpleNamespace(
        plan={"steps": steps, "buffers": buffers},
        graph=lambda: graph,
        json=lambda name: tensors,
        variants={},
        variant="",
        run=lambda observer, **taken: [
            observer(i, s["outputs"][0], None) for i, s in enumerate(steps)
        ],
    )


BATCH = {"input_ids": np.zeros(3, np.int32), "cu_seqlens": np.array([0, 1, 3], np.int32)}


def test_work_on_paper(program):
    embed, dense, attention, picked = roofline.work(program, BATCH)
    assert embed == roofline.Work(0, 3 * 16, 3 * 4 + 3 * 16)  # three rows of the table
    assert dense == roofline.Work(3 * 16 * 16, 16 * 16 + 2 * 64, 2 * 48)
    assert attention == roofline.Work(2 * (1 + 4) * 16, 0, 48 + 12 + 48)
    assert picked == roofline.Work(0, 0, 32 + 12 + 32)


def test_the_roof_on_paper(program, monkeypatch):
    """The longer of compute and memory, over the time that was taken."""
    clock = iter(np.cumsum([0, *[x for _ in range(4) for x in (1e-3, 0)]] * 1).tolist())
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(roofline, "given", lambda library, batch: {})
    peaks = roofline.Peaks(macs=1e6, constants=1e6, activations=1e6)
    monkeypatch.setattr(roofline, "measured_peaks", lambda library: peaks)
    ops = roofline.op_times(program, BATCH, 1, runs=1, per_op=True)
    assert [op.name for op in ops][:2] == ["embed_0 -> e", "dense_0 -> y"]
    assert [op.bound for op in ops] == ["memory", "compute", "compute", "memory"]
    np.testing.assert_allclose([op.milliseconds for op in ops], 1)
    np.testing.assert_allclose([op.roof for op in ops], [0.108, 0.768, 0.160, 0.076])
    assert sum(op.share for op in ops) == pytest.approx(1)
