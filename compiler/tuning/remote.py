"""Machines that others measure on, through TVM's RPC.

A machine offers itself to a tracker (`intformer rpc-server`); who tunes asks the tracker for one.
"""

import ctypes
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from intformer.errors import IntformerError

HINT = "python -m tvm.exec.query_rpc_tracker shows what there is"
NAMES = "intformer.tuning.device."  # of the functions that a server has beside TVM's own
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Remote:
    """A machine behind a TVM RPC tracker."""

    host: str
    port: int
    key: str

    @classmethod
    def parse(cls, address: str, key: str | None) -> "Remote":
        """Read HOST:PORT and a key."""
        if not key:
            raise IntformerError("no key of the remote machines", where="--rpc-key")
        return cls(*host_and_port(address, "--rpc"), key)

    @property
    def about(self) -> str:
        """What provenance says of the CPU."""
        return f"behind RPC key {self.key!r}"

    def open(self, timeout: float):
        """Ask the tracker for a machine; IntformerError where it has none of them."""
        from tvm import rpc

        try:
            socket.create_connection((self.host, self.port), timeout=5).close()
            tracker = rpc.connect_tracker(self.host, self.port)
            servers = {about["key"] for about in tracker.summary()["server_info"]}
            if f"server:{self.key}" not in servers:  # a request would wait for one to come
                raise RuntimeError("the tracker knows none")
            return tracker.request(self.key, session_timeout=int(timeout))
        except Exception as error:  # OSError, TVMError, RuntimeError
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise IntformerError(
                f"no machine with key {self.key!r}: {text[-1]}",
                where=f"--rpc {self.host}:{self.port}",
                hint=HINT,
            ) from error

    def session(self, timeout: float):
        """Return a session that lives long enough for one candidate: opening one takes seconds.

        The remote machine ends it after that time, a hanging candidate included.
        """
        began, session = _sessions.get(self, (0.0, None))
        if session is None or time.monotonic() - began > timeout:
            _sessions.pop(self, None)
            session = None  # closes it; a machine serves one at a time
            _sessions[self] = (time.monotonic(), self.open(2 * timeout))
        return _sessions[self][1]


_sessions: dict[Remote, tuple[float, object]] = {}  # in the measuring process: when it began, it


def connect(remote: Remote, timeout: float) -> None:
    """Have a session, see Remote.session; a machine that was lost has `timeout` to come back."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            remote.session(timeout)
            return
        except IntformerError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


def host_and_port(address: str, argument: str) -> tuple[str, int]:
    """Read HOST:PORT; IntformerError names the argument."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise IntformerError(f"{address!r} is not HOST:PORT", where=argument)
    return host, int(port)


def serve(
    tracker: str,
    key: str,
    *,
    host: str = "127.0.0.1",
    port: int = 9091,
    say: Callable[[str], None] = print,
) -> NoReturn:
    """Offer this machine, its GPU included, to a tracker, until the process is interrupted.

    tracker     HOST:PORT
    key         what machines of this kind are requested by
    host, port  to listen on; the next free port is taken. 127.0.0.1 is reached from this machine
                alone
    say         called with a line once it serves

    TVM's RPC runs whatever it is sent: for networks where everyone is trusted.
    """
    address = host_and_port(tracker, "--tracker")
    try:
        socket.create_connection(address, timeout=5).close()
    except (OSError, UnicodeError) as error:  # TVM would try again for a minute
        raise IntformerError(
            f"no tracker answers: {error}",
            where=f"--tracker {tracker}",
            hint="start one: python -m tvm.exec.rpc_tracker",
        ) from None
    server = _start(address, key, host, port)
    try:
        say(f"serving {key} on port {server.port}; end with Ctrl-C")
        server.proc.join()
    finally:
        server.terminate()
    raise _ended(*address)


def _ended(host: str, port: int) -> IntformerError:
    """Return the error of a server that stopped by itself."""
    return IntformerError(
        "the server ended", where=f"--tracker {host}:{port}", hint="its last line says why"
    )


def _start(tracker: tuple[str, int], key: str, host: str, port: int):
    """Start TVM's server, a process of its own."""
    from tvm.rpc.server import Server

    from intformer.tuning.build import last_line

    try:
        return Server(
            host,
            port=port,
            port_end=min(port + 100, 1 << 16),
            key=key,
            tracker_addr=tracker,
            server_init_callback=_prepare_server,
        )
    except (OSError, ValueError, OverflowError) as error:
        if last_line(error) == "Subprocess terminated":  # before it could tell its port
            raise _ended(*tracker) from None
        raise IntformerError(
            f"cannot listen: {last_line(error)}",
            where=f"--host {host} --port {port}",
            hint="an address of this machine, and a free port below 65536",
        ) from None


def _prepare_server() -> None:
    """Register what sessions may call. Each is a process, forked from the one this runs in."""
    import tvm_ffi
    from tvm.rpc import server

    from intformer.tuning.ways import SERVED

    _end_with_parent()
    os.register_at_fork(after_in_child=_end_with_parent)
    threading.excepthook = _end_of_thread
    server._serving = partial(_outlive, server._serving)
    multiprocessing.set_start_method("fork", force=True)
    for function in SERVED:
        tvm_ffi.register_global_func(NAMES + function.__name__, function, override=True)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _outlive(serving: Callable, connection: socket.socket, *arguments) -> None:
    """Serve a session; TVM's server would end with one whose process crashed."""
    folder = os.getcwd()
    try:
        serving(connection, *arguments)
    except RuntimeError as error:
        print(error, flush=True)
        os.chdir(folder)
        connection.close()


def _end_of_thread(about) -> None:
    """End the process with its listening thread: without that it would serve nobody, for ever."""
    print(f"{about.exc_type.__name__}: {about.exc_value}", flush=True)
    os._exit(1)
