"""A race on a machine that lacks things, and between libraries that look alike."""

from intformer import bench, library


def test_no_roof_without_a_c_compiler(monkeypatch):
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bench.Path, "read_text", lambda path: "flags : avx512_vnni")
    assert bench.vnni_peak() is None
