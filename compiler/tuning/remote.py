"""Machines that others measure on, through TVM's RPC.

A machine offers itself to a tracker (`intformer rpc-server`); who tunes asks the tracker for one.
"""

import multiprocessing
import socket
import time
from dataclasses import dataclass

from intformer.errors import IntformerError

HINT = "python -m tvm.exec.query_rpc_tracker shows what there is"
NAMES = "intformer.tuning.gpu."  # of the functions that a server has beside TVM's own


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

    def gpu(self, name: str, session):
        """Return a function of a server that has a GPU, see `serve`."""
        try:
            return session.get_function(NAMES + name)
        except Exception as error:  # AttributeError, TVMError
            raise IntformerError(
                f"the machine with key {self.key!r} does not measure on GPUs",
                where=f"--rpc {self.host}:{self.port}",
                hint="start `intformer rpc-server` there, from the version that is here",
            ) from error


_sessions: dict[Remote, tuple[float, object]] = {}  # in the measuring process: when it began, it


def host_and_port(address: str, argument: str) -> tuple[str, int]:
    """Read HOST:PORT; IntformerError names the argument."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise IntformerError(f"{address!r} is not HOST:PORT", where=argument)
    return host, int(port)


def serve(tracker: str, key: str, host: str, port: int):
    """Offer this machine, its GPU included, to a tracker; return the server, a process of its own.

    tracker     HOST:PORT
    host, port  to listen on; the next free port is taken

    TVM's RPC runs whatever it is sent: for networks where everyone is trusted.
    """
    address = host_and_port(tracker, "--tracker")
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError as error:  # the server would try again for minutes
        raise IntformerError(
            f"no tracker answers: {error}",
            where=f"--tracker {tracker}",
            hint="start one: python -m tvm.exec.rpc_tracker",
        ) from None
    from tvm.rpc.server import Server

    return Server(
        host,
        port=port,
        port_end=port + 100,
        key=key,
        tracker_addr=address,
        server_init_callback=_offer_gpu,
    )


def _offer_gpu() -> None:
    """Register what sessions may call. Each is a process, forked from the one this runs in."""
    import tvm_ffi

    from intformer.tuning import gpu

    multiprocessing.set_start_method("fork", force=True)
    for function in (gpu.about, gpu.holds, gpu.measured):
        tvm_ffi.register_global_func(NAMES + function.__name__, function, override=True)
