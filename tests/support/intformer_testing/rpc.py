"""A TVM RPC tracker on loopback, and servers that offer themselves to it."""

import time
from contextlib import contextmanager

from intformer.tuning.remote import host_and_port

HOST = "127.0.0.1"


@contextmanager
def tracker(port: int):
    """Run a tracker on the first free of a hundred ports; give its HOST:PORT."""
    from tvm.rpc.tracker import Tracker

    running = Tracker(HOST, port=port, port_end=port + 100, silent=True)
    try:
        yield f"{HOST}:{running.port}"
    finally:
        running.terminate()


@contextmanager
def server(address: str, key: str, port: int):
    """Run TVM's own server until the end, or until what this gives is called."""
    from tvm.rpc.server import Server

    where = host_and_port(address, "")
    running = Server(HOST, port=port, port_end=port + 100, key=key, tracker_addr=where, silent=True)
    try:
        wait_for(address, key)
        yield running.terminate
    finally:
        running.terminate()


def wait_for(address: str, key: str, there: bool = True) -> None:
    """Return when the tracker knows a server of that key, or no longer."""
    from tvm import rpc

    deadline = time.monotonic() + 60
    while True:
        servers = rpc.connect_tracker(*host_and_port(address, "")).summary()["server_info"]
        if (f"server:{key}" in {about["key"] for about in servers}) == there:
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)
