"""A race on a machine that lacks things, and between libraries that look alike."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from intformer import bench, cli, library


def test_no_roof_without_a_c_compiler(monkeypatch):
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bench.Path, "read_text", lambda path: "flags : avx512_vnni")
    assert bench.practical_peak("vnni") is None


@pytest.mark.parametrize("unit", ["vnni", "amx"])
def test_the_roof_is_measured(unit):
    meter = bench.peak_meter(unit)
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
    monkeypatch.setattr(bench, "op_times", lambda *options: [])
    monkeypatch.setattr(bench, "described", lambda *options: "a race")
    verdict = {"a": SimpleNamespace(ok=True), "b": SimpleNamespace(ok=False)}
    monkeypatch.setattr(bench, "verify", lambda one, **options: verdict[one.metadata["name"]])
    race = bench.run("a.so", against=["b.so"], seconds=0.1)
    assert not race.verified
    assert race.unverified == ["b, native, x86-64"]
    assert cli.bench_lines(race)[-1] == "raced libraries: NOT verified: b, native, x86-64"
