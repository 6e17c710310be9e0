"""The encoder's latency and throughput: contenders in turns, in blocks of queries, each query timed by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mclst.benchmarks.contenders.base import F32, U8, Encoder
from mclst.benchmarks.harness.measure import in_turns, ratio, spread
from mclst.benchmarks.harness.percentiles import latency
from mclst.benchmarks.harness.power import Meter
from mclst.benchmarks.harness.stages import ON_DEVICE

Clock = Callable[[], float]

_WINDOWS, _WITHIN = 3, 0.03
"""Warm is who took the same time in the last three windows, within 3 %."""


@dataclass(frozen=True)
class WarmUp:
    """How a contender was warmed up: queries, seconds, and whether its times had settled when that ended."""

    queries: int
    seconds: float
    settled: bool


@dataclass
class _Block:
    """What one contender did in all its turns."""

    queries: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    joules: list[dict[str, float]] = field(default_factory=list)
    device_s: dict[str, list[float]] = field(default_factory=dict)

    def add_device(self, seconds: Mapping[str, Sequence[float]]) -> None:
        """Keep each query's seconds of its stages on the device, by their names in ON_DEVICE."""
        for name, stage in ON_DEVICE.items():
            if name in seconds:
                self.device_s.setdefault(stage, []).extend(seconds[name])


def warm_up(
    query: Callable[[], object], *, least_s: float, most_s: float, clock: Clock = time.perf_counter
) -> WarmUp:
    """Query until the times settle: at least `least_s`, at most `most_s` seconds, and at least three queries.

    Windows are a quarter of `least_s` long, or one query where that is longer.
    """
    started = clock()
    means: list[float] = []
    queries = in_window = 0
    window_from = started
    while True:
        query()
        queries, in_window = queries + 1, in_window + 1
        now = clock()
        if now - window_from >= least_s / 4:
            means.append((now - window_from) / in_window)
            window_from, in_window = now, 0
        last = means[-_WINDOWS:]
        settled = len(last) == _WINDOWS and max(last) <= (1 + _WITHIN) * min(last)
        if (settled and now - started >= least_s) or (now - started >= most_s and queries >= _WINDOWS):
            return WarmUp(queries, now - started, settled)


def measure(
    encoders: Sequence[Encoder],
    tiles: U8,
    *,
    batch: int,
    rounds: int,
    block_s: float,
    meters: Sequence[Meter] = (),
    warm_s: tuple[float, float] = (0.5, 5.0),
    clock: Clock = time.perf_counter,
    done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Time queries of `batch` tiles by every encoder: in each round each has a block of at least `block_s` seconds.

    Queries follow each other without a pause (MLPerf's single stream where batch is 1) and walk through `tiles` uint8
    [n, H, W, 3] over and over. No query is left out. The first encoder is the one others are compared with: by the
    median over rounds of the ratio of their mean latencies in the round. On a device its own events time what is copied
    up, encoded and copied down in each query, beside the host's clock. A peer that fails while it is warmed up is left
    out, and `failed` says why.
    """
    at_once = _batches(tiles, batch)
    warm = {}
    blocks = {encoder.name: _Block() for encoder in encoders}
    turns: dict[str, Callable[[], object]] = {}
    failed = []
    for encoder in encoders:
        walk = _Walk(encoder, at_once)
        try:
            if encoder.times is None:
                warm[encoder.name] = warm_up(walk.query, least_s=warm_s[0], most_s=warm_s[1], clock=clock)
            else:
                encoder.times(batch, 0.0)
        except Exception as error:  # another's runtime may fail in any way; that is a result
            if encoder.ours:
                raise
            failed.append({"name": encoder.name, "why": " ".join(str(error).split())[:200]})
            continue
        turns[encoder.name] = _turn(encoder, walk, blocks[encoder.name], batch, block_s, meters, clock)
    took = in_turns(turns, rounds, warm_up=0, done=done)
    first = encoders[0].name
    results = []
    for encoder in (encoder for encoder in encoders if encoder.name in turns):
        block = blocks[encoder.name]
        told = latency(block.queries)
        results.append(
            {
                "name": encoder.name,
                "ours": encoder.ours,
                "gpu": encoder.gpu,
                "precision": encoder.precision,
                "latency_s": told,
                "tiles_per_s": batch / told["mean"],
                "latency_to_first": ratio(block.means, blocks[first].means),
                "cpu_s_per_tile": sum(took.samples[encoder.name].cpu_s) / (batch * told["n"]),
                "joules_per_tile": _joules(block, batch),
                "device_s": {stage: latency(s) for stage, s in block.device_s.items()} or None,
                "warm_up": vars(warm[encoder.name]) if encoder.name in warm else None,
                "samples": {
                    "query_s": [round(s, 7) for s in block.queries],
                    "round_mean_s": block.means,
                    **{f"{stage}_s": [round(s, 7) for s in taken] for stage, taken in block.device_s.items()},
                },
            }
        )
    return {
        "batch": batch,
        "scenario": "single-stream" if batch == 1 else "batch",
        "first": first,
        "results": results,
        "failed": failed,
        "load": took.load,
    }


def offline(
    encoders: Sequence[Encoder],
    batches: dict[str, int],
    tiles: U8,
    *,
    rounds: int,
    done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """MLPerf's offline: all tiles are there at once, and what counts is how many are done a second.

    Each encoder takes them in the batch given for its name, the last one ragged.
    """

    def through(encoder: Encoder) -> Callable[[], object]:
        step = batches[encoder.name]
        return lambda: [encoder.encode(tiles[at : at + step]) for at in range(0, len(tiles), step)]

    chosen = [encoder for encoder in encoders if encoder.times is None]
    took = in_turns({encoder.name: through(encoder) for encoder in chosen}, rounds, done=done)
    first = chosen[0].name
    return {
        "tiles": len(tiles),
        "first": first,
        "load": took.load,
        "results": [
            {
                "name": encoder.name,
                "ours": encoder.ours,
                "batch": batches[encoder.name],
                "tiles_per_s": spread([len(tiles) / s for s in took.samples[encoder.name].wall_s]),
                "wall_to_first": ratio(took.samples[encoder.name].wall_s, took.samples[first].wall_s),
                "cpu_to_first": ratio(took.samples[encoder.name].cpu_s, took.samples[first].cpu_s),
                "samples": {
                    "wall_s": took.samples[encoder.name].wall_s,
                    "cpu_s": took.samples[encoder.name].cpu_s,
                },
            }
            for encoder in chosen
        ],
    }


def sustained(
    encoder: Encoder,
    tiles: U8,
    *,
    batch: int,
    seconds: float,
    window_s: float,
    condition: Callable[[], dict[str, Any]],
    meters: Sequence[Meter] = (),
    clock: Clock = time.perf_counter,
    done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Encode without a pause for `seconds`: tiles a second by window, the machine's condition after each.

    `last_to_first`: the rate over the last quarter of the windows as a share of the first quarter's.
    """
    walk = _Walk(encoder, _batches(tiles, batch))
    warm_up(walk.query, least_s=min(1.0, window_s), most_s=window_s, clock=clock)
    windows: list[dict[str, Any]] = []
    started = clock()
    while clock() - started < seconds:
        before, since, queries = [meter.joules() for meter in meters], clock(), 0
        while clock() - since < window_s:
            walk.query()
            queries += 1
        took = clock() - since
        windows.append(
            {
                "at_s": since - started,
                "tiles_per_s": queries * batch / took,
                "watts": {
                    meter.name: (meter.joules() - was) / took
                    for meter, was in zip(meters, before, strict=True)
                }
                or None,
                "condition": condition(),
            }
        )
        done()
    rates = [window["tiles_per_s"] for window in windows]
    quarter = max(1, len(rates) // 4)
    return {
        "name": encoder.name,
        "batch": batch,
        "windows": windows,
        "tiles_per_s": spread(rates),
        "last_to_first": float(np.mean(rates[-quarter:]) / np.mean(rates[:quarter])),
    }


def agreement(encoders: Sequence[Encoder], tiles: U8, wanted: F32) -> dict[str, dict[str, float]]:
    """How far each encoder's embeddings are from `wanted` [n, D]: least cosine, and largest difference as a share.

    The share is of the largest value wanted. Encoders that give no embeddings are left out.
    """
    found = {}
    b = wanted.astype(np.float64)
    for encoder in encoders:
        if encoder.times is None:
            a = encoder.encode(tiles).astype(np.float64)
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            found[encoder.name] = {
                "cosine_min": float(((a * b).sum(axis=1) / np.maximum(norms, 1e-300)).min()),
                "max_abs_share": float(np.abs(a - b).max() / np.abs(b).max()),
            }
    return found


class _Walk:
    """Queries one after another through the batches, over and over."""

    def __init__(self, encoder: Encoder, batches: list[U8]) -> None:
        self._encoder, self._batches, self._next = encoder, batches, 0

    def query(self) -> None:
        self._encoder.encode(self._batches[self._next])
        self._next = (self._next + 1) % len(self._batches)


def _batches(tiles: U8, batch: int) -> list[U8]:
    """Whole batches of the tiles, repeated where there are fewer than one batch."""
    if len(tiles) < batch:
        tiles = np.resize(tiles, (batch, *tiles.shape[1:]))
    return [tiles[at : at + batch] for at in range(0, len(tiles) - batch + 1, batch)]


def _turn(
    encoder: Encoder,
    walk: _Walk,
    block: _Block,
    batch: int,
    block_s: float,
    meters: Sequence[Meter],
    clock: Clock,
) -> Callable[[], object]:
    def turn() -> None:
        joules = [meter.joules() for meter in meters]
        if encoder.times is not None:
            timed = encoder.times(batch, block_s)
            taken = timed.query_s
            block.add_device(timed.device_s)
        else:
            taken, until = [], clock() + block_s
            before = encoder.device_seconds() if encoder.device_seconds else {}
            while not taken or clock() < until:
                start = clock()
                walk.query()
                taken.append(clock() - start)
                if encoder.device_seconds:
                    now = encoder.device_seconds()
                    block.add_device({name: [s - before.get(name, 0.0)] for name, s in now.items()})
                    before = now
            block.joules.append({m.name: m.joules() - was for m, was in zip(meters, joules, strict=True)})
        block.queries += taken
        block.means.append(float(np.mean(taken)))

    return turn


def _joules(block: _Block, batch: int) -> dict[str, float] | None:
    """Joules a tile by meter, over all turns; None without meters."""
    names = block.joules[0] if block.joules else {}
    tiles = batch * len(block.queries)
    return {name: sum(turn[name] for turn in block.joules) / tiles for name in names} or None
