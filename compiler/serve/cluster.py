"""The application on Ray Serve: fronts that pass requests on, and replicas that run libraries.

A front is the gate of a server without libraries. It hands each request to a replica, and to
another one where that dies: answers depend on the request alone, so asking twice is asking once.
Replicas are started while tokens wait. To deploy again replaces them one by one, and a replica ends
when it has answered what it took.
"""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from intformer.errors import IntformerError
from intformer.runtime.file import LibraryFile
from intformer.runtime.library import load
from intformer.serve.app import application
from intformer.serve.gate import Gate, Message, Receive, Send
from intformer.serve.limits import Limits
from intformer.serve.metrics import Metrics
from intformer.serve.scaling import Scaling
from intformer.serve.served import Work, deadline, work

NAME = "intformer"  # of the application on the cluster
WAIT = 0.1  # seconds between two tries, while no replica is there
QUEUED = "queued_tokens"
DELAYS = {  # seconds over which tokens are counted, and until replicas come and go
    "look_back_period_s": 15.0,
    "upscale_delay_s": 5.0,
    "downscale_delay_s": 300.0,
}


@dataclass(frozen=True)
class Copy:
    """A library as every machine of the cluster must have it.

    path   the same on all
    build  its id
    """

    path: str
    build: str


@dataclass
class Reply:
    """What a replica answers; `error` and `work` are for the log of the front."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    error: str | None
    work: Work


class Replica:
    """A process with the libraries."""

    def __init__(self, copies: Mapping[str, Copy], limits: Limits, threads: int):
        """Load them; raise IntformerError where this machine has another build."""
        libraries = {}
        for name, copy in copies.items():
            libraries[name] = load(copy.path)
            if (build := libraries[name].footer.build_id.hex()) != copy.build:
                raise IntformerError(
                    f"build {build[:8]}, the cluster serves {copy.build[:8]}",
                    where=f"{copy.path} on {ray.util.get_node_ip_address()}",
                    hint="copy the library to the same path on every machine",
                )
            libraries[name].set_threads(threads)
        self.app = application(libraries, limits).app  # its gate is the front
        self.models = self.app.state.models

    async def __call__(self, scope: dict, body: bytes, seconds: float) -> Reply:
        """Answer a request within some seconds."""
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        deadline.set(time.monotonic() + seconds)
        work.set(about := Work())
        scope = {**scope, "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1"}
        await self.app(scope, receive, send)
        found = b"".join(message.get("body", b"") for message in sent[1:])
        return Reply(sent[0]["status"], sent[0]["headers"], found, scope.get("error"), about)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return how many tokens wait, for QueuedTokens."""
        return {QUEUED: sum(one.engine.waiting for one in self.models.all.values())}

    def check_health(self) -> None:
        """Raise where a library takes no requests any more; Ray then starts another replica."""
        if not all(one.engine.alive for one in self.models.all.values()):
            raise RuntimeError("an engine has ended")


class Front:
    """The gate in front of the replicas."""

    def __init__(self, replicas: serve.handle.DeploymentHandle, limits: Limits, key: str | None):
        """Keep what the application is made of."""
        self.replicas, self.limits, self.key = replicas, limits, key

    def __serve_build_asgi_app__(self) -> Gate:
        """Return the application, as Ray Serve asks for it."""
        self.metrics = Metrics()
        paths = application({}).paths
        return Gate(self.passed_on, self.limits, self.metrics, self.key, paths)

    async def passed_on(self, scope: Message, receive: Receive, send: Send) -> None:
        """Have a request answered by a replica: an ASGI application."""
        if scope["type"] != "http":
            return
        if scope["path"] == "/metrics":
            await _send(send, 200, [(b"content-type", b"text/plain")], self.metrics.text())
            return
        names = ("method", "path", "raw_path", "query_string", "root_path", "headers", "scheme")
        asked = {name: scope[name] for name in names if name in scope}
        body = (await receive()).get("body", b"")
        end = deadline.get(time.monotonic() + self.limits.timeout)
        reply = await self._reply(asked, body, end)
        about = work.get(Work())
        about.model, about.sequences = reply.work.model, reply.work.sequences
        about.tokens, scope["error"] = reply.work.tokens, reply.error
        await _send(send, reply.status, reply.headers, reply.body)

    async def _reply(self, asked: dict, body: bytes, end: float) -> Reply:
        while True:
            try:
                return await self.replicas.remote(asked, body, end - time.monotonic())
            except RayActorError:  # it died with the request; the gate ends this at the deadline
                await asyncio.sleep(WAIT)


async def _send(send: Send, status: int, headers: list, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class QueuedTokens:
    """As many replicas as the tokens that wait need."""

    def __init__(self, target: int):
        """Keep how many may wait for each."""
        self.target = target

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict]:
        """Return the number of replicas; Ray Serve keeps it between the bounds."""
        waiting = sum((context.aggregated_metrics or {}).get(QUEUED, {}).values())
        return max(math.ceil(waiting / self.target), 1), {}


def deploy(
    paths: Mapping[str, Path],
    limits: Limits,
    scaling: Scaling,
    *,
    host: str,
    port: int,
    threads: int,
    key: str | None,
) -> str:
    """Deploy on the cluster that runs here, or replace what runs there; return the address."""
    copies = {
        name: Copy(str(path.resolve()), LibraryFile(path).footer.build_id.hex())
        for name, path in paths.items()
    }
    try:
        ray.init(address="auto", namespace="serve", log_to_driver=False, ignore_reinit_error=True)
    except ConnectionError:
        raise IntformerError(
            "no Ray cluster", hint="ray start --head; or set RAY_ADDRESS"
        ) from None
    serve.start(http_options={"host": host, "port": port})
    policy = AutoscalingPolicy(
        policy_function=f"{__name__}:{QueuedTokens.__name__}",
        policy_kwargs={"target": scaling.target_queued_tokens},
    )
    replicas = serve.deployment(
        Replica,
        name="replica",
        ray_actor_options={"num_cpus": threads},
        max_ongoing_requests=limits.max_concurrent_requests,
        graceful_shutdown_timeout_s=limits.timeout,
        logging_config={"enable_access_log": False},
        autoscaling_config=AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            policy=policy,
            **DELAYS,
        ),
    )
    front = serve.deployment(
        serve.ingress()(Front),
        name="front",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=2 * limits.max_concurrent_requests,  # the gate refuses, not the queue
        graceful_shutdown_timeout_s=limits.timeout,
        logging_config={"enable_access_log": False},
    )
    bound = front.bind(replicas.bind(copies, limits, threads), limits, key)
    serve.run(bound, name=NAME, route_prefix="/")
    return f"http://{host}:{port}"
