"""Latency and throughput of encoders: interleaved blocks of queries, each query timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mclst.benchmarks.contenders.base import F32, U8, Encoder
from mclst.benchmarks.harness.measure import paired_ratio, summarize, time_interleaved
from mclst.benchmarks.harness.percentiles import summarize_latency
from mclst.benchmarks.harness.power import Meter
from mclst.benchmarks.harness.stages import DEVICE_STAGES

Clock = Callable[[], float]

_WINDOWS, _TOLERANCE = 3, 0.03
"""Warm: the last three windows took the same time within 3 %."""


@dataclass(frozen=True)
class WarmUp:
    """Queries and seconds of a warm-up, and whether the times had settled."""

    queries: int
    seconds: float
    settled: bool


@dataclass
class _Samples:
    """Samples of one contender over all its blocks."""

    queries: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    joules: list[dict[str, float]] = field(default_factory=list)
    device_s: dict[str, list[float]] = field(default_factory=dict)

    def add_device(self, seconds: Mapping[str, Sequence[float]]) -> None:
        """Append seconds of device stages, by their names in DEVICE_STAGES."""
        for name, stage in DEVICE_STAGES.items():
            if name in seconds:
                self.device_s.setdefault(stage, []).extend(seconds[name])


def warm_up(
    query: Callable[[], object], *, min_s: float, max_s: float, clock: Clock = time.perf_counter
) -> WarmUp:
    """Query until the times settle: between `min_s` and `max_s` seconds, and at least three queries.

    A window is a quarter of `min_s`, or one query where that is longer.
    """
    started = clock()
    means: list[float] = []
    queries = in_window = 0
    window_start = started
    while True:
        query()
        queries, in_window = queries + 1, in_window + 1
        now = clock()
        if now - window_start >= min_s / 4:
            means.append((now - window_start) / in_window)
            window_start, in_window = now, 0
        last = means[-_WINDOWS:]
        settled = len(last) == _WINDOWS and max(last) <= (1 + _TOLERANCE) * min(last)
        if (settled and now - started >= min_s) or (now - started >= max_s and queries >= _WINDOWS):
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
    on_round: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Time queries of `batch` tiles by every encoder, in interleaved blocks of at least `block_s` seconds.

    Queries cycle through `tiles` uint8 [n, H, W, 3] without a pause (MLPerf's single stream at batch 1); none
    is dropped. Ratios are to the first encoder: the median over rounds of the ratio of mean latencies. On a
    device, events time the stages of each query. warm_s: least and most seconds of the warm-up; a peer that
    fails in it is skipped, and `failed` says why.
    """
    tile_batches = _batches(tiles, batch)
    warm_ups = {}
    samples_by_name = {encoder.name: _Samples() for encoder in encoders}
    blocks: dict[str, Callable[[], object]] = {}
    failed = []
    for encoder in encoders:
        cycle = _QueryCycle(encoder, tile_batches)
        try:
            if encoder.measure is None:
                warm_ups[encoder.name] = warm_up(cycle.query, min_s=warm_s[0], max_s=warm_s[1], clock=clock)
            else:
                encoder.measure(batch, 0.0)
        except Exception as error:  # a peer may fail in any way; that is a result
            if encoder.ours:
                raise
            failed.append({"name": encoder.name, "why": " ".join(str(error).split())[:200]})
            continue
        blocks[encoder.name] = _make_block(
            encoder, cycle, samples_by_name[encoder.name], batch, block_s, meters, clock
        )
    timed = time_interleaved(blocks, rounds, warm_up=0, on_round=on_round)
    first = encoders[0].name
    results = []
    for encoder in (encoder for encoder in encoders if encoder.name in blocks):
        samples = samples_by_name[encoder.name]
        stats = summarize_latency(samples.queries)
        results.append(
            {
                "name": encoder.name,
                "ours": encoder.ours,
                "gpu": encoder.gpu,
                "precision": encoder.precision,
                "latency_s": stats,
                "tiles_per_s": batch / stats["mean"],
                "latency_to_first": paired_ratio(samples.means, samples_by_name[first].means),
                "cpu_s_per_tile": sum(timed.samples[encoder.name].cpu_s) / (batch * stats["n"]),
                "joules_per_tile": _joules(samples, batch),
                "device_s": {stage: summarize_latency(s) for stage, s in samples.device_s.items()} or None,
                "warm_up": vars(warm_ups[encoder.name]) if encoder.name in warm_ups else None,
                "samples": {
                    "query_s": [round(s, 7) for s in samples.queries],
                    "round_mean_s": samples.means,
                    **{
                        f"{stage}_s": [round(s, 7) for s in seconds]
                        for stage, seconds in samples.device_s.items()
                    },
                },
            }
        )
    return {
        "batch": batch,
        "scenario": "single-stream" if batch == 1 else "batch",
        "first": first,
        "results": results,
        "failed": failed,
        "load": timed.load,
    }


def offline(
    encoders: Sequence[Encoder],
    batches: dict[str, int],
    tiles: U8,
    *,
    rounds: int,
) -> dict[str, Any]:
    """MLPerf's offline scenario: all tiles at once, tiles per second.

    Each encoder uses its batch in `batches`; its last one may be smaller.
    """

    def encode_all(encoder: Encoder) -> Callable[[], object]:
        size = batches[encoder.name]
        return lambda: [encoder.encode(tiles[i : i + size]) for i in range(0, len(tiles), size)]

    chosen = [encoder for encoder in encoders if encoder.measure is None]
    timed = time_interleaved({encoder.name: encode_all(encoder) for encoder in chosen}, rounds)
    first = chosen[0].name
    return {
        "tiles": len(tiles),
        "first": first,
        "load": timed.load,
        "results": [
            {
                "name": encoder.name,
                "ours": encoder.ours,
                "batch": batches[encoder.name],
                "tiles_per_s": summarize([len(tiles) / s for s in timed.samples[encoder.name].wall_s]),
                "wall_to_first": paired_ratio(
                    timed.samples[encoder.name].wall_s, timed.samples[first].wall_s
                ),
                "cpu_to_first": paired_ratio(timed.samples[encoder.name].cpu_s, timed.samples[first].cpu_s),
                "samples": {
                    "wall_s": timed.samples[encoder.name].wall_s,
                    "cpu_s": timed.samples[encoder.name].cpu_s,
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
) -> dict[str, Any]:
    """Encode without a pause for `seconds`; tiles per second by window, and `condition` after each.

    `last_to_first`: rate of the last quarter of the windows over that of the first.
    """
    cycle = _QueryCycle(encoder, _batches(tiles, batch))
    warm_up(cycle.query, min_s=min(1.0, window_s), max_s=window_s, clock=clock)
    windows: list[dict[str, Any]] = []
    started = clock()
    while clock() - started < seconds:
        before, since, queries = [meter.joules() for meter in meters], clock(), 0
        while clock() - since < window_s:
            cycle.query()
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
    rates = [window["tiles_per_s"] for window in windows]
    quarter = max(1, len(rates) // 4)
    return {
        "name": encoder.name,
        "batch": batch,
        "windows": windows,
        "tiles_per_s": summarize(rates),
        "last_to_first": float(np.mean(rates[-quarter:]) / np.mean(rates[:quarter])),
    }


def agreement(encoders: Sequence[Encoder], tiles: U8, reference: F32) -> dict[str, dict[str, float]]:
    """Compare each encoder's embeddings with `reference` [n, D].

    Returns least cosine, and largest difference relative to the largest value. Encoders without embeddings
    are skipped.
    """
    agreements = {}
    b = reference.astype(np.float64)
    for encoder in encoders:
        if encoder.measure is None:
            a = encoder.encode(tiles).astype(np.float64)
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            agreements[encoder.name] = {
                "cosine_min": float(((a * b).sum(axis=1) / np.maximum(norms, 1e-300)).min()),
                "max_abs_share": float(np.abs(a - b).max() / np.abs(b).max()),
            }
    return agreements


class _QueryCycle:
    """Queries that cycle through the batches."""

    def __init__(self, encoder: Encoder, batches: list[U8]) -> None:
        self._encoder, self._batches, self._next = encoder, batches, 0

    def query(self) -> None:
        self._encoder.encode(self._batches[self._next])
        self._next = (self._next + 1) % len(self._batches)


def _batches(tiles: U8, batch: int) -> list[U8]:
    """Full batches of the tiles, which are repeated where they are fewer than one batch."""
    if len(tiles) < batch:
        tiles = np.resize(tiles, (batch, *tiles.shape[1:]))
    return [tiles[i : i + batch] for i in range(0, len(tiles) - batch + 1, batch)]


def _make_block(
    encoder: Encoder,
    cycle: _QueryCycle,
    samples: _Samples,
    batch: int,
    block_s: float,
    meters: Sequence[Meter],
    clock: Clock,
) -> Callable[[], object]:
    def block() -> None:
        joules = [meter.joules() for meter in meters]
        if encoder.measure is not None:
            times = encoder.measure(batch, block_s)
            seconds = times.query_s
            samples.add_device(times.device_s)
        else:
            seconds, end = [], clock() + block_s
            before = encoder.device_seconds() if encoder.device_seconds else {}
            while not seconds or clock() < end:
                start = clock()
                cycle.query()
                seconds.append(clock() - start)
                if encoder.device_seconds:
                    now = encoder.device_seconds()
                    samples.add_device({name: [s - before.get(name, 0.0)] for name, s in now.items()})
                    before = now
            samples.joules.append({m.name: m.joules() - was for m, was in zip(meters, joules, strict=True)})
        samples.queries += seconds
        samples.means.append(float(np.mean(seconds)))

    return block


def _joules(samples: _Samples, batch: int) -> dict[str, float] | None:
    """Joules per tile by meter, over all blocks; None without meters."""
    names = samples.joules[0] if samples.joules else {}
    tiles = batch * len(samples.queries)
    return {name: sum(block[name] for block in samples.joules) / tiles for name in names} or None
