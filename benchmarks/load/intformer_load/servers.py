"""Servers on this machine: ours, and the same application around other runtimes."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

UP_SECONDS = 300
HERE = Path(__file__).parents[1]


@contextmanager
def running(
    contestant: str, library: Path, rival: Path | None, threads: int, *options: str
) -> Iterator[tuple[str, int]]:
    """Run a server on loopback; give its address and process number.

    contestant  "ours", or one of rivals.RUNTIMES, which runs `rival` instead of the library
    options     of `intformer serve`
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words: Sequence[str] = ["-m", "intformer", "serve", str(library)]
    if contestant != "ours":
        words = [str(HERE), "rival", contestant, str(library), str(rival)]
    command = [sys.executable, *words, "--port", str(port), "--threads", str(threads), *options]
    base, end = f"http://127.0.0.1:{port}", time.monotonic() + UP_SECONDS
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            while True:
                try:
                    if httpx.get(f"{base}/health", trust_env=False).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                if server.poll() is not None or time.monotonic() > end:
                    sys.exit(f"error: {contestant} does not come up - {' '.join(command)}")
                time.sleep(0.1)
            yield base, server.pid
        finally:
            server.terminate()


def resident(pid: int) -> float:
    """Return the memory that a process has resident, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise LookupError(pid)
