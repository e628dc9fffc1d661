"""Objects come back whole or not at all, whoever else writes."""

import os
import stat
import subprocess
import sys
import time

import pytest

from intformer import knobs
from intformer.backends.object_cache import DIGEST, ObjectCache
from intformer.errors import IntformerError


@pytest.fixture
def cache(tmp_path):
    return ObjectCache(tmp_path / "deep" / "objects")


def test_objects_come_back(cache):
    assert cache.get("a") is None
    cache.put("a", b"first")
    cache.put("b", b"")
    cache.put("a", b"second")
    assert cache.get("a") == b"second" and cache.get("b") == b""
    assert sorted(os.listdir(cache.folder)) == ["a", "b"]


@pytest.mark.parametrize("keep", [0, 1, DIGEST - 1, DIGEST, DIGEST + 1, DIGEST + 5])
def test_a_cut_entry_counts_as_absent(cache, keep):
    cache.put("a", b"object")
    entry = cache.folder / "a"
    entry.write_bytes(entry.read_bytes()[:keep])
    assert cache.get("a") is None
    cache.put("a", b"object")
    assert cache.get("a") == b"object"


def test_an_altered_entry_counts_as_absent(cache):
    cache.put("a", b"object")
    entry = cache.folder / "a"
    for at in range(DIGEST + len(b"object")):
        data = bytearray(entry.read_bytes())
        data[at] ^= 1
        entry.write_bytes(data)
        assert cache.get("a") is None
        cache.put("a", b"object")


def test_the_entries_used_longest_ago_go_first(tmp_path):
    cache = ObjectCache(tmp_path, limit=3 * (DIGEST + 100))
    for age, key in enumerate("abcd"):
        cache.put(key, bytes(100))
        os.utime(tmp_path / key, (1000 + age, 1000 + age))
    (tmp_path / ".new-left").write_bytes(b"by a process that was killed")
    os.utime(tmp_path / ".new-left", (999, 999))
    assert cache.get("a") == bytes(100)  # used now
    cache.trim()
    assert sorted(os.listdir(tmp_path)) == ["a", "c", "d"]


def test_a_file_that_is_being_written_stays(cache, monkeypatch):
    """Another process trims just before the file gets its name; its writer was slow."""
    rename = os.replace

    def replace(source, target):
        os.utime(source, (time.time() - 60,) * 2)
        ObjectCache(cache.folder, limit=0).trim()
        rename(source, target)

    cache.put("old", bytes(100))
    monkeypatch.setattr(os, "replace", replace)
    cache.put("a", b"object")
    assert cache.get("a") == b"object" and os.listdir(cache.folder) == ["a"]


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    cache = ObjectCache(tmp_path / "file" / "objects")
    assert cache.get("a") is None
    with pytest.raises(OSError):
        cache.put("a", b"object")


WRITER = """
import sys
from intformer.backends.object_cache import ObjectCache
cache = ObjectCache(sys.argv[1], limit=1 << 20)
data = bytes(range(256)) * 256
for turn in range(300):
    key = str(turn % 40)
    cache.put(key, data)
    if (found := cache.get(key)) not in (None, data):
        sys.exit(f"{len(found)} bytes")
    cache.trim()
"""


def test_two_processes_at_once(tmp_path):
    """They write, read and drop the same entries; each sees whole ones alone."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for run in runs:
        _, err = run.communicate(timeout=120)
        assert run.returncode == 0, err
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".new-")]
    assert sum(entry.stat().st_size for entry in os.scandir(tmp_path)) <= 1 << 20


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("INTFORMER_CACHE", str(tmp_path))
    assert knobs.cache() == tmp_path
    monkeypatch.setenv("INTFORMER_CACHE", "")
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert str(knobs.cache()) == "/nowhere/.cache/intformer"
    monkeypatch.setenv("XDG_CACHE_HOME", "/big")
    assert str(knobs.cache()) == "/big/intformer"


def test_the_folder_is_the_user_s_alone(tmp_path):
    before = os.umask(0)
    try:
        cache = ObjectCache(tmp_path / "new" / "objects")
        cache.check()
    finally:
        os.umask(before)
    for folder in (cache.folder, cache.folder.parent):
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path, mode):
    cache = ObjectCache(tmp_path / "objects")
    cache.put("ab", b"object")
    cache.folder.chmod(mode)
    if mode & stat.S_ISVTX:
        cache.folder.chmod(0o777)
    with pytest.raises(IntformerError, match=r"can be written by other users - .*objects"):
        cache.check()
    cache.folder.chmod(0o755)
    cache.check()


def test_a_folder_below_one_that_anyone_can_rename_in(tmp_path):
    (tmp_path / "open").mkdir()
    cache = ObjectCache(tmp_path / "open" / "objects")
    cache.check()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(IntformerError, match="is below a folder that can be written"):
        cache.check()
    (tmp_path / "open").chmod(0o1777)  # as /tmp: nobody renames what is not theirs
    cache.check()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_another_user_owns_is_not_taken(tmp_path):
    cache = ObjectCache(tmp_path / "objects")
    cache.put("ab", b"object")
    os.chown(cache.folder / "ab", 12345, -1)
    assert cache.get("ab") is None
    os.chown(cache.folder, 12345, -1)
    with pytest.raises(IntformerError, match="belongs to another user"):
        cache.check()


def test_links_and_pipes_are_no_objects(tmp_path):
    cache = ObjectCache(tmp_path / "objects")
    cache.put("ab", b"object")
    (cache.folder / "cd").symlink_to("ab")
    os.mkfifo(cache.folder / "ef")
    assert cache.get("cd") is None and cache.get("ef") is None
    assert cache.get("ab") == b"object"


def test_a_link_into_a_folder_that_others_can_write_is_refused(tmp_path):
    (tmp_path / "open" / "mine").mkdir(parents=True)
    (tmp_path / "open" / "mine").chmod(0o700)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open" / "mine")
    with pytest.raises(IntformerError, match="below a folder that can be written by other users"):
        ObjectCache(tmp_path / "link" / "objects").check()
