"""Temporary folders that nothing leaves behind.

A folder is removed when its work ends, also by an exception; `ends_by_signal` makes SIGTERM and
SIGHUP one. A process that is killed cannot clean up: its folders carry its number and start time
in their names, and the next one that works in the same place removes those of dead processes.
"""

import hashlib
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

MARK = "intformer-"
NAME = re.compile(rf"(?:\..+\.)?{MARK}(\d+)-(\d+)-([0-9a-f]{{8}})-\w+")
ABANDONED_SECONDS = 24 * 3600  # of a folder whose process this one could not see


@contextmanager
def folder(parent: Path | None = None, name: str = "") -> Iterator[Path]:
    """Make a temporary folder, mode 0700, and remove it when the block ends.

    parent  where; None: TMPDIR
    name    of the file that is made in it: the folder is called .NAME.intformer-...
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    sweep(parent)
    prefix = f"{MARK}{os.getpid()}-{_start(os.getpid())}-{_machine()}-"
    with tempfile.TemporaryDirectory(
        dir=parent, prefix=f".{name}.{prefix}" if name else prefix, ignore_cleanup_errors=True
    ) as made:
        yield Path(made)


def sweep(parent: Path) -> None:
    """Remove the folders that dead processes of this user left in `parent`."""
    try:
        entries = list(os.scandir(parent))
    except OSError:
        return
    for entry in entries:
        known = NAME.fullmatch(entry.name)
        if known is None:
            continue
        try:
            about = entry.stat(follow_symlinks=False)
        except OSError:  # gone meanwhile
            continue
        if stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and _is_dead(known, about):
            shutil.rmtree(entry.path, ignore_errors=True)


def _is_dead(name: re.Match, about: os.stat_result) -> bool:
    number, start, machine = int(name[1]), name[2], name[3]
    if machine != _machine():  # another container, or before the machine was started again
        return time.time() - about.st_mtime > ABANDONED_SECONDS
    return _start(number) != start


def _start(process: int) -> str:
    """Return when a process started, in clock ticks; "" if there is none."""
    try:
        with open(f"/proc/{process}/stat") as file:
            about = file.read()
    except OSError:
        return "" if process != os.getpid() else "0"
    return about.rpartition(")")[2].split()[19]  # field 22; a program's name may hold anything


@cache
def _machine() -> str:
    """Return what tells process numbers apart that are not of one kernel or container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = space = ""
    return hashlib.sha256(f"{boot} {space}".encode()).hexdigest()[:8]


@contextmanager
def ends_by_signal() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as an exception does, with folders removed.

    Handlers are restored afterwards; those that nohup or a host program chose are left alone.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _end:
                signal.signal(number, handler)


def _end(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough
    sys.exit(128 + number)
