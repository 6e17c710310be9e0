"""A server under load: so many clients, each with a request under way all the time, and how long their answers take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.harness.measure import load_average
from mclst.benchmarks.harness.percentiles import latency
from mclst.runtime.errors import ServerError
from mclst.runtime.serving.connection import Server
from mclst.runtime.serving.flow_control import FlowControl

NEAR = 1e-3
"""A request's answers may differ by this share of the largest value: the server puts different tiles together each time."""


@dataclass
class Client:
    """One client: its tiles uint8 [n, S, S, 3], the same in every request, and its own flow of one request at a time."""

    tiles: NDArray[np.uint8]
    flow: FlowControl
    first: NDArray[np.float32] | None = None

    async def ask(self, server: Server) -> float:
        """Seconds until the answer is here, pauses and further tries included.

        Raises ServerError where it is not the answer to these tiles.
        """
        started = time.perf_counter()
        answer = await server.predict_expression(self.tiles, self.flow)
        seconds = time.perf_counter() - started
        if self.first is None:
            self.first = answer
        if np.abs(answer - self.first).max() > NEAR * max(1.0, float(np.abs(self.first).max())):
            raise ServerError(
                f"{server.address} gives other expression for the same tiles under load; look at its log"
            )
        return seconds


def made_up_tiles(count: int, side: int, seed: int) -> NDArray[np.uint8]:
    """Noise, uint8 [count, side, side, 3]: what is in a tile does not change how long it takes."""
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
    """So many clients at once until `requests` are answered, after warm_up ones each that do not count.

    Every request that is begun is answered, or this raises ResourceError; none is left out of the latencies.
    """
    side = server.served.bundle.manifest.tile.size_px
    clients = [
        Client(made_up_tiles(batch, side, seed), FlowControl(1, patience_s, str(server.address)))
        for seed in range(concurrency)
    ]

    async def each(client: Client, count: int) -> list[float]:
        return [await client.ask(server) for _ in range(count)]

    async def all_of(counts: list[int]) -> list[float]:
        parts = await asyncio.gather(*map(each, clients, counts))
        return [seconds for part in parts for seconds in part]

    async def in_common() -> list[float]:
        """Clients take from what is left, so that all of them are there to the end."""
        left = requests
        found: list[float] = []

        async def work(client: Client) -> None:
            nonlocal left
            while left > 0:
                left -= 1
                found.append(await client.ask(server))
                advance(1)

        await asyncio.gather(*map(work, clients))
        return found

    server.run(all_of([warm_up] * concurrency))
    before = [(c.flow.counts.rejected, c.flow.counts.lost, c.flow.counts.answered) for c in clients]
    load, cpu, wall = load_average(), time.process_time(), time.perf_counter()
    samples = server.run(in_common())
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
        "latency_s": latency(samples),
        "rejected": rejected,
        "lost": lost,
        "retried": rejected + lost,
        "client_cpu_of_core": cpu / wall,
        "load": [load, load_average()],
        "samples": {"request_s": samples},
    }
