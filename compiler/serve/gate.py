"""What every request passes before the application sees it.

The key, how many at a time, how large and how slow a body may be, how long an answer may take, and
whether the client still waits; then metrics and one line of log, which hold no text of a request.
"""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping

from intformer.errors import IntformerError
from intformer.serve.faults import Fault, body_of, fault_of
from intformer.serve.limits import Limits
from intformer.serve.metrics import Metrics
from intformer.serve.served import Work, deadline, work

PUBLIC = {"/", "/health", "/ping", "/metrics", "/docs", "/openapi.json"}  # without a key
LOG = logging.getLogger("intformer.serve")

Message = MutableMapping[str, object]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Gate:
    """ASGI middleware around the application.

    paths    of the application; others are logged as "-"
    pressed  whether a request of this path would wait too long: refused before its body is read
    """

    def __init__(
        self,
        app,
        limits: Limits,
        metrics: Metrics,
        key: str | None,
        paths: set[str],
        pressed: Callable[[str], bool] = lambda _: False,
    ):
        """Wrap an application."""
        self.app, self.limits, self.metrics = app, limits, metrics
        self.key, self.paths, self.pressed = key, paths, pressed
        self.running = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self.paths)
        try:
            await self._pass(exchange, receive)
        except asyncio.CancelledError:
            exchange.error = "Cancelled"
            raise
        except ConnectionError:
            exchange.error = "Disconnected"
        except Exception as error:
            exchange.error = fault_of(error).kind
            if exchange.error == "Internal":
                LOG.error("%s", json.dumps({"bug": _where(error)}))
            await exchange.refuse(fault_of(error))
        finally:
            exchange.note(self.metrics)

    async def _pass(self, exchange: "_Exchange", receive: Receive) -> None:
        self._check_key(exchange)
        if exchange.method != "POST":
            await self.app(exchange.scope, receive, exchange.send)
            return
        if self.running >= self.limits.max_concurrent_requests or self.pressed(exchange.path):
            raise Fault("Overloaded", "model is overloaded")
        self.running += 1
        self.metrics.running.set(self.running)
        try:
            deadline.set(time.monotonic() + self.limits.timeout)
            work.set(exchange.work)
            body = await self._body(exchange, receive)
            await self._answer(exchange, body, receive)
        finally:
            self.running -= 1
            self.metrics.running.set(self.running)

    def _check_key(self, exchange: "_Exchange") -> None:
        if self.key is None or exchange.path in PUBLIC:
            return
        given = exchange.header(b"authorization").encode("latin-1")
        if not hmac.compare_digest(given, f"Bearer {self.key}".encode()):
            raise Fault("Unauthorized", "this server needs its key: Authorization: Bearer KEY")

    async def _body(self, exchange: "_Exchange", receive: Receive) -> bytes:
        """Read the body; raise Fault where it is too large or too slow."""
        most = self.limits.max_body_bytes
        length = exchange.header(b"content-length")
        if length.isdecimal() and int(length) > most:
            raise Fault("TooLarge", f"the body has more than {most} bytes")
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise Fault("TooLarge", f"the body has more than {most} bytes")
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Fault("Slow", "the body took too long to arrive") from None

    async def _answer(self, exchange: "_Exchange", body: bytes, receive: Receive) -> None:
        """Run the application until it is done, too late or without a client."""
        given = False

        async def body_once() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        app = asyncio.ensure_future(self.app(exchange.scope, body_once, exchange.send))
        client = asyncio.ensure_future(gone())
        try:
            left = deadline.get() - time.monotonic()
            await asyncio.wait({app, client}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if app.done():
                app.result()
            elif client.done():
                raise ConnectionError
            else:
                raise Fault("Timeout", "the answer took too long")
        finally:
            for task in (app, client):
                task.cancel()
            await asyncio.gather(app, client, return_exceptions=True)


class _Exchange:
    """A request and what becomes of it."""

    def __init__(self, scope: Message, send: Send, paths: set[str]):
        self.scope, self._send = scope, send
        self.method, self.path = str(scope["method"]), str(scope["path"])
        self.shown = self.path if self.path in paths else "-"
        self.began, self.status, self.error, self.work = time.monotonic(), None, None, Work()

    def header(self, name: bytes) -> str:
        """Return a header, "" where it is absent."""
        return dict(self.scope["headers"]).get(name, b"").decode("latin-1")

    async def send(self, message: Message) -> None:
        """Pass a message to the client."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def refuse(self, fault: Fault) -> None:
        """Answer with a fault, unless an answer has begun."""
        if self.status is not None:
            return
        body = json.dumps(body_of(fault, self.path)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if fault.kind in ("TooLarge", "Slow"):  # the rest of the body is not read
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": fault.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def note(self, metrics: Metrics) -> None:
        """Write the line of the log, and count."""
        seconds = time.monotonic() - self.began
        failed = self.error or self.scope.get("error")  # the application's, see app.py
        if not failed and (self.status or 500) >= 400:
            failed = str(self.status)
        metrics.requests.labels(self.shown).inc()
        if failed:
            metrics.failures.labels(failed).inc()
        else:
            metrics.successes.labels(self.shown).inc()
            metrics.seconds.labels(self.shown).observe(seconds)
        about = {
            "method": self.method if self.method in ("GET", "HEAD", "POST") else "-",
            "path": self.shown,
            "status": self.status,
            "error": failed,
            "milliseconds": round(1000 * seconds, 2),
            "model": self.work.model,
            "sequences": self.work.sequences,
            "tokens": self.work.tokens,
        }
        LOG.info("%s", json.dumps(about))


def _where(error: Exception) -> str:
    """Return the kind of an error and its place, not its message: that may quote a text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "-"
    return f"{type(error).__name__} at {place}"


def key_of(file: str | None, environment: str | None) -> str | None:
    """Return the key that requests need: the first line of a file, or what the environment has."""
    if file is None:
        return environment or None
    with open(file, encoding="utf-8") as opened:
        key = opened.readline().strip()
    if not key:
        raise IntformerError("no key in its first line", where=file)
    return key
