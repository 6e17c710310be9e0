"""Load on a model server: concurrent clients, each with one request in flight, and their latencies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.harness.machine import load_average
from mclst.benchmarks.harness.percentiles import summarize_latency
from mclst.runtime.errors import ServerError
from mclst.runtime.serving.connection import Server
from mclst.runtime.serving.flow_control import FlowControl

TOLERANCE = 1e-3
"""Relative to the largest value. Answers vary with the tiles that the server batches together."""


@dataclass
class Client:
    """A client that sends the same tiles uint8 [n, S, S, 3] in every request, one request at a time."""

    tiles: NDArray[np.uint8]
    flow: FlowControl
    first: NDArray[np.float32] | None = None

    async def request(self, server: Server) -> float:
        """Send one request; return seconds until its answer, retries included.

        Raises
        ------
        ServerError
            If the answer differs from the first one.
        """
        started = time.perf_counter()
        answer = await server.predict_expression(self.tiles, self.flow)
        seconds = time.perf_counter() - started
        if self.first is None:
            self.first = answer
        if np.abs(answer - self.first).max() > TOLERANCE * max(1.0, float(np.abs(self.first).max())):
            raise ServerError(
                f"{server.address} gives other expression for the same tiles under load; check its log"
            )
        return seconds


def noise_tiles(count: int, side: int, seed: int) -> NDArray[np.uint8]:
    """Noise, uint8 [count, side, side, 3]; a tile's content does not change its time."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def measure(
    server: Server,
    concurrency: int,
    requests: int,
    batch: int,
    *,
    warm_up: int,
    patience_s: float,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, Any]:
    """Run `concurrency` clients until `requests` are answered; `warm_up` requests per client do not count.

    Every request is answered and counted; ResourceError if the server answers nothing for `patience_s`.
    """
    side = server.served.bundle.manifest.tile.size_px
    clients = [
        Client(noise_tiles(batch, side, seed), FlowControl(1, patience_s, str(server.address)))
        for seed in range(concurrency)
    ]

    async def repeat(client: Client) -> None:
        for _ in range(warm_up):
            await client.request(server)

    async def warm() -> None:
        await asyncio.gather(*map(repeat, clients))

    async def share_requests() -> list[float]:
        """Clients draw from one pool of requests, so that all of them work to the end."""
        remaining = requests
        seconds: list[float] = []

        async def work(client: Client) -> None:
            nonlocal remaining
            while remaining > 0:
                remaining -= 1
                seconds.append(await client.request(server))
                advance(1)

        await asyncio.gather(*map(work, clients))
        return seconds

    server.run(warm())
    before = [(c.flow.counts.rejected, c.flow.counts.lost, c.flow.counts.answered) for c in clients]
    load, cpu, wall = load_average(), time.process_time(), time.perf_counter()
    samples = server.run(share_requests())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = [(c.flow.counts.rejected, c.flow.counts.lost, c.flow.counts.answered) for c in clients]
    rejected, lost, answered = (np.array(after) - np.array(before)).sum(axis=0).tolist()
    if answered != requests or len(samples) != requests:
        raise AssertionError(f"{answered} answers and {len(samples)} times for {requests} requests")
    return {
        "concurrency": concurrency,
        "requests": requests,
        "wall_s": wall,
        "requests_per_s": requests / wall,
        "tiles_per_s": requests * batch / wall,
        "latency_s": summarize_latency(samples),
        "rejected": rejected,
        "lost": lost,
        "retried": rejected + lost,
        "client_cpu_of_core": cpu / wall,
        "load": [load, load_average()],
        "samples": {"request_s": samples},
    }
