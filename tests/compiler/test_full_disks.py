"""Disks that are full or cannot be written, and limits on files: an error in one line."""

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from intformer_testing import random_hf, small_tokenizer

DATA = Path(__file__).parents[1] / "data"
SHAPE = {"hidden": 32, "heads": 1, "layers": 1, "ffn": 48, "labels": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source")
    random_hf.save(path, "bert", "sequence-classification", **SHAPE)
    small_tokenizer.save(path)
    return path


@contextmanager
def mounted(folder, options):
    """A file system in memory at a folder; skips where this user cannot mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount program")
    if done.returncode:
        pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def compiled(source, output, *options, limit=None, **more):
    """Run `intformer compile` in a process of its own: (exit code, lines on stderr)."""

    def prepare():
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "intformer", "compile", str(source), "-o", str(output)]
    command += ["--calibrate", str(DATA / "sentences.txt"), "--method", "minmax"]
    command += ["--target", "x86-64", *options]
    environment = {**os.environ, **more.pop("env", {})}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, preexec_fn=prepare, **more
    )
    lines = [line for line in done.stderr.splitlines() if "shards" not in line]
    return done.returncode, lines


def one_error(result, *words):
    code, lines = result
    assert code == 1, (code, lines)
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("free", [0, 12288], ids=["nothing", "three pages"])
def test_a_full_temporary_folder(source, tmp_path, free):
    """Where nothing is free Python takes the next folder; where little is, one line says it."""
    with mounted(tmp_path / "tiny", "size=64k") as tiny:
        (tiny / "filler").write_bytes(bytes(65536 - free))
        environment = {"TMPDIR": str(tiny)}
        result = compiled(source, tmp_path / "m.so", "--no-cache", env=environment)
        assert os.listdir(tiny) == ["filler"]
    if free:
        one_error(result, "No space left on device", str(tiny), "TMPDIR")
        assert not (tmp_path / "m.so").exists()
    else:
        assert result[0] == 0, result


def test_a_limit_on_the_size_of_files(source, tmp_path):
    result = compiled(source, tmp_path / "m.so", "--no-cache", limit=4096)
    one_error(result, "File too large", "ulimit -f")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_for_the_library(source, tmp_path):
    with mounted(tmp_path / "tiny", "size=64k") as tiny:
        one_error(
            compiled(source, tiny / "m.so", "--no-cache"), "No space left on device", str(tiny)
        )
        assert os.listdir(tiny) == []


def test_a_full_disk_for_the_cache(source, tmp_path):
    """The library is made; its objects are not kept."""
    with mounted(tmp_path / "tiny", "size=64k") as tiny:
        tiny.chmod(0o700)
        environment = {"INTFORMER_CACHE": str(tiny / "cache")}
        code, lines = compiled(source, tmp_path / "m.so", env=environment)
        kept = [path for path in tiny.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in kept) < 65536
    assert (code, (tmp_path / "m.so").is_file()) == (0, True), lines


@pytest.mark.parametrize("where", ["TMPDIR", "the working directory", "the cache", "the output"])
def test_a_disk_that_cannot_be_written(source, tmp_path, where):
    with mounted(tmp_path / "fixed", "ro,size=64k") as fixed:
        output, more = tmp_path / "m.so", {}
        if where == "TMPDIR":
            more["env"] = {"TMPDIR": str(fixed)}
        elif where == "the cache":
            more["env"] = {"INTFORMER_CACHE": str(fixed / "cache")}
        elif where == "the working directory":
            more["cwd"] = fixed
        else:
            output = fixed / "m.so"
        result = compiled(source, output, **more)
    if where == "the output":
        one_error(result, "Read-only file system", str(output))
    else:
        assert result[0] == 0 and output.is_file(), result
