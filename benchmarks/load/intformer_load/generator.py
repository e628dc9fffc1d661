"""Requests at given times, whatever the server does: an open loop, so that waiting is measured.

A request's time counts from when it was due, not from when it could be sent.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np

SECONDS = 60.0  # until a request is given up


@dataclass(frozen=True)
class Shot:
    """A request: which body, what came back, and seconds since it was due."""

    body: int
    status: int
    seconds: float
    answer: object


@dataclass(frozen=True)
class Volley:
    """All requests of some time.

    late  seconds by which the generator itself fell behind, at worst
    """

    shots: Sequence[Shot]
    seconds: float
    late: float

    @property
    def answered(self) -> list[Shot]:
        """Those with status 200."""
        return [shot for shot in self.shots if shot.status == 200]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.answered) / self.seconds

    def quantile(self, share: float, status: int = 200) -> float:
        """Return seconds within which that share of the requests of a status was over."""
        found = [shot.seconds for shot in self.shots if shot.status == status]
        return float(np.quantile(found, share)) if found else float("nan")


def open_loop(base: str, bodies: Sequence[dict], rate: float, seconds: float, seed=0) -> Volley:
    """Send `rate` requests a second, at the times of a Poisson process."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, int(rate * seconds) + 1)
    picks = rng.integers(len(bodies), size=gaps.size)
    return asyncio.run(_open(base, bodies, np.cumsum(gaps), picks))


async def _open(base: str, bodies: Sequence[dict], due: np.ndarray, picks: np.ndarray) -> Volley:
    late, tasks = 0.0, []
    async with _client(base) as client:
        began = time.perf_counter()
        for at, pick in zip(due, picks, strict=True):
            wait = began + at - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            late = max(late, -wait)
            tasks.append(asyncio.ensure_future(_shot(client, bodies, int(pick), began + at)))
        shots = await asyncio.gather(*tasks)
        return Volley(shots, time.perf_counter() - began, late)


def closed_loop(base: str, bodies: Sequence[dict], clients: int, seconds: float) -> Volley:
    """Let clients ask one request after the other: what the server can do at most."""
    return asyncio.run(_closed(base, bodies, clients, seconds))


async def _closed(base: str, bodies: Sequence[dict], clients: int, seconds: float) -> Volley:
    shots: list[Shot] = []
    async with _client(base) as client:
        began = time.perf_counter()

        async def ask(number: int) -> None:
            while time.perf_counter() < began + seconds:
                pick = number % len(bodies)
                shots.append(await _shot(client, bodies, pick, time.perf_counter()))
                number += clients

        await asyncio.gather(*map(ask, range(clients)))
        return Volley(shots, time.perf_counter() - began, 0.0)


def each(base: str, bodies: Sequence[dict]) -> Volley:
    """Ask every request once, alone: one after the other."""
    return asyncio.run(_each(base, bodies))


async def _each(base: str, bodies: Sequence[dict]) -> Volley:
    async with _client(base) as client:
        began = time.perf_counter()
        shots = [
            await _shot(client, bodies, pick, time.perf_counter()) for pick in range(len(bodies))
        ]
        return Volley(shots, time.perf_counter() - began, 0.0)


def _client(base: str) -> aiohttp.ClientSession:
    connections = aiohttp.TCPConnector(limit=0)  # what waited here would not be refused there
    limit = aiohttp.ClientTimeout(total=SECONDS)
    return aiohttp.ClientSession(base, connector=connections, timeout=limit)


async def _shot(
    client: aiohttp.ClientSession, bodies: Sequence[dict], pick: int, due: float
) -> Shot:
    try:
        async with client.post("/embed", json=bodies[pick]) as answer:
            content = await answer.read()
    except (aiohttp.ClientError, TimeoutError):
        return Shot(pick, 0, time.perf_counter() - due, None)
    spent = time.perf_counter() - due
    found = json.loads(content) if answer.status == 200 else None
    return Shot(pick, answer.status, spent, found)
