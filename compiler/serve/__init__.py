"""HTTP: the routes of text-embeddings-inference and of OpenAI over compiled libraries.

gate      what every request passes: key, limits, deadline, log
app       the application
engine    the thread that runs a library for all requests
cluster   the application on Ray Serve
"""

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from intformer.errors import IntformerError, require
from intformer.runtime.library import load
from intformer.serve.limits import Limits
from intformer.serve.scaling import Scaling

__all__ = ["Limits", "Scaling", "run_server"]


def run_server(
    libraries: Sequence[str | os.PathLike],
    limits: Limits = Limits(),  # noqa: B008 - it cannot be changed
    scaling: Scaling = Scaling(),  # noqa: B008
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    threads: int = 0,
    api_key: str | os.PathLike | None = None,
) -> str | None:
    """Serve compiled libraries until SIGINT or SIGTERM, then finish what was taken.

    libraries  their files; requests name them by the file's name without its ending
    limits     what the server takes on
    scaling    with ray: deploy on the cluster, or replace what it serves, and return the address
    host       address to listen on; 0.0.0.0: all of this machine
    port       to listen on
    threads    that compute for each library; 0: as many as affinity and quota allow, or 1 in each
               replica of a cluster
    api_key    file whose first line requests must bring as `Authorization: Bearer KEY`; None: what
               INTFORMER_API_KEY has, or no key
    """
    require("fastapi", "uvicorn", "prometheus_client")
    from intformer import knobs
    from intformer.serve.gate import key_of

    paths = {Path(one).stem: Path(one) for one in libraries}
    if len(paths) != len(libraries):
        raise IntformerError(
            "two libraries of one name",
            where=", ".join(map(str, libraries)),
            hint="requests name them by their files: rename one",
        )
    key = key_of(api_key, knobs.api_key())
    if scaling.ray:
        require("ray")
        from intformer.serve.cluster import deploy

        return deploy(paths, limits, scaling, host=host, port=port, threads=threads or 1, key=key)
    _run_here(paths, limits, host, port, threads, key)
    return None


def _run_here(
    paths: Mapping[str, Path], limits: Limits, host: str, port: int, threads: int, key: str | None
) -> None:
    import uvicorn

    from intformer.serve.app import application

    with _listening(host, port) as opened:
        loaded = {name: load(path) for name, path in paths.items()}
        if threads:
            for library in loaded.values():
                library.set_threads(threads)
        app = application(loaded, limits, key)
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        logging.getLogger("intformer.serve").setLevel(logging.INFO)
        config = uvicorn.Config(
            app,
            access_log=False,  # it would show queries; the gate has its own
            log_level="info",
            server_header=False,
            timeout_graceful_shutdown=int(limits.timeout) + 1,
        )
        uvicorn.Server(config).run(sockets=[opened])


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket at an address; raise IntformerError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise IntformerError(
            f"cannot listen: {why}", where=f"{host}:{port}", hint="choose another --port or --host"
        ) from None
