"""Temporary folders: nothing is left behind, and nobody else's is touched."""

import os
import signal
import subprocess
import sys
import time

import pytest

from intformer import cli, scratch
from intformer_testing import random_hf

HOLD = """
import pathlib, sys, time
from intformer import cli, scratch
with scratch.ends_by_signal(), scratch.folder(pathlib.Path(sys.argv[1]), "model.so") as folder:
    (folder / "file").write_text("x")
    print("ready", flush=True)
    time.sleep(60)
"""


def hold(tmp_path):
    """A process that works in a temporary folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    heard = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in heard:  # nohup has children ignore SIGHUP
        signal.signal(number, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for number, handler in heard.items():
        signal.signal(number, handler)
    assert process.stdout.readline() == "ready\n"
    return process


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_folder_goes_with_its_work(tmp_path):
    with scratch.folder(tmp_path) as made:
        assert made.parent == tmp_path and made.stat().st_mode & 0o777 == 0o700
        scratch.sweep(tmp_path)
        assert made.is_dir()
    with pytest.raises(KeyError), scratch.folder(tmp_path, "lib.so") as made:
        (made / "inside").mkdir()
        assert made.name.startswith(".lib.so.intformer-")
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_is_asked_to_end_cleans_up(tmp_path, number):
    process = hold(tmp_path)
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_at_the_next_start(tmp_path):
    live, killed = hold(tmp_path), hold(tmp_path)
    killed.kill()
    killed.wait()
    assert len(list(tmp_path.iterdir())) == 2
    with scratch.folder(tmp_path):
        (kept,) = (path for path in tmp_path.iterdir() if path.name.startswith(".model.so."))
        assert f"-{live.pid}-" in kept.name
    live.terminate()
    live.wait()
    assert not list(tmp_path.iterdir())


def test_only_folders_of_ours_are_swept(tmp_path):
    mark, dead = scratch._machine(), dead_process()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    place = tmp_path / "place"
    place.mkdir()
    ours = place / f"intformer-{dead}-1-{mark}-abc"
    ours.mkdir()
    kept = [
        place / "intformer-notes",
        place / f"intformer-{os.getpid()}-{scratch._start(os.getpid())}-{mark}-abc",
        place / f"intformer-{dead}-1-00000000-new",  # of another container
        place / f"other-{dead}-1-{mark}-abc",
    ]
    for path in kept:
        path.mkdir()
    link, file = place / f"intformer-{dead}-2-{mark}-abc", place / f"intformer-{dead}-3-{mark}-abc"
    link.symlink_to(outside)
    file.write_text("no folder")
    old = place / f"intformer-{dead}-1-00000000-old"
    old.mkdir()
    long_ago = time.time() - 2 * scratch.ABANDONED_SECONDS
    os.utime(old, (long_ago, long_ago))
    scratch.sweep(place)
    assert sorted(place.iterdir()) == sorted([*kept, link, file])
    assert (outside / "file").read_text() == "kept"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_compile_that_is_ended(tmp_path, number):
    source, temporary, out = (tmp_path / name for name in ("source", "temporary", "out"))
    for folder in (source, temporary, out):
        folder.mkdir()
    random_hf.save(source, "bert", "features", layers=1)
    random_ids = "import numpy as np; ids = [np.arange(5, 5 + n) for n in range(1, 9)]"
    code = f"""
import sys
{random_ids}
from intformer import cli, scratch
import intformer
target = {{"target": "x86-64", "calibrate": ids, "cache": False}}
with scratch.ends_by_signal():
    intformer.compile({str(source)!r}, {str(out / "m.so")!r}, **target)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(temporary)}
    )
    end = time.monotonic() + 60
    while not list(temporary.glob("intformer-*/*.o")) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) == (143 if number == signal.SIGTERM else -number)
    if number == signal.SIGKILL:
        assert list(temporary.glob("intformer-*"))
        scratch.sweep(temporary)
        scratch.sweep(out)
    assert not list(temporary.glob("intformer-*")) and not list(out.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this process may not mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("full", ["TMPDIR", "output", "cache"])
def test_a_full_disk_is_one_line(tmp_path, small_disk, full):
    """LLVM crashed where it could not write; a cache that is full only keeps nothing."""
    source = tmp_path / "source"
    source.mkdir()
    random_hf.save(source, "bert", "features", layers=1)
    (small_disk / "filler").write_bytes(bytes(60 << 10))
    places = {"TMPDIR": tmp_path, "output": tmp_path, "cache": tmp_path, full: small_disk}
    code = f"""
import numpy as np
from unittest import mock
from intformer import cli, pipeline
from intformer.frontend import import_model
model = import_model({str(source)!r}, calibrate=[np.arange(5, 5 + n) for n in range(1, 9)])
with mock.patch("intformer.frontend.import_model", lambda *a, **k: model):
    arguments = ["compile", "SRC", "-o", {str(places["output"] / "m.so")!r}]
    raise SystemExit(cli.main([*arguments, "--target", "x86-64"]))
"""
    environment = {
        **os.environ,
        "TMPDIR": str(places["TMPDIR"]),
        "INTFORMER_CACHE": str(places["cache"] / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    if full == "cache":
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "Traceback" not in done.stderr
    assert "space" in line, line


def test_the_command_restores_signal_handlers(capsys):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    assert cli.main(["targets"]) == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before
