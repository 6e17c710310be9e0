"""How fast each provider and precision runs an encoder here: measured by turns, and remembered."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.user_cache import cache_folder, read_own, store_own
from mclst.runtime.choices import FASTEST_FIRST, PRECISIONS

FORMAT = "mclst-encoder-choice/1"
FOLDER = "encoder-choices"

NEAR = 0.04
"""Of candidates this close to the fastest, the one in the higher precision is taken."""
SMALL_MARGIN = 0.1
"""Closer than this, the next runs measure again, until MOST_TIMES."""
MOST_TIMES = 3
KEPT, KEPT_UNCONFIRMED = timedelta(days=30), timedelta(days=1)
"""How long a record counts. What was measured once is measured again after a day, when whatever held a
candidate up is over.
"""
CLOCK_TOLERANCE = timedelta(days=1)

ROUNDS = (2, 5)
"""Rounds for every candidate, and at most."""
SLOWER = 1.3
"""After the first rounds, candidates this much slower than the fastest are given up."""
TRY_SECONDS, ALL_SECONDS = 0.15, 1.5
"""About how long one try may take, and all of them after the first rounds."""
FAST_ENOUGH = 1000.0
"""Tiles/s of the first candidate from which reading, not encoding, bounds a run: nothing is tried."""

Encode = Callable[[NDArray[np.uint8]], Any]


@dataclass(frozen=True)
class Timing:
    """A candidate's speed, the best of several tries."""

    provider: str
    precision: str
    tiles_per_second: float

    @property
    def name(self) -> tuple[str, str]:
        """Provider and precision."""
        return self.provider, self.precision


@dataclass(frozen=True)
class Record:
    """What was measured of a bundle on a machine; times: how often."""

    timings: tuple[Timing, ...]
    measured: datetime
    times: int

    def merged(self, other: Record | None) -> Record:
        """Add an earlier record: each candidate's best speed counts, as a slow try says little."""
        if other is None:
            return self
        best = {t.name: t for t in other.timings}
        for timing in self.timings:
            before = best.get(timing.name)
            if before is None or timing.tiles_per_second > before.tiles_per_second:
                best[timing.name] = timing
        return Record(tuple(best.values()), self.measured, self.times + other.times)


def fastest(timings: Sequence[Timing]) -> Timing:
    """Return the fastest; of those within NEAR of it, the one in the highest precision."""
    limit = max(t.tiles_per_second for t in timings) * (1 - NEAR)
    near = [t for t in timings if t.tiles_per_second >= limit]
    return min(near, key=lambda t: (PRECISIONS.index(t.precision), -t.tiles_per_second))


def is_recent(record: Record, now: datetime) -> bool:
    """Whether a record still counts."""
    return -CLOCK_TOLERANCE <= now - record.measured <= KEPT


def is_settled(record: Record, now: datetime) -> bool:
    """Whether a record is recent and confirmed, and its choice clear or measured often enough."""
    if not is_recent(record, now) or (record.times == 1 and now - record.measured > KEPT_UNCONFIRMED):
        return False
    chosen = fastest(record.timings)
    others = [t.tiles_per_second for t in record.timings if t.name != chosen.name]
    clear = not others or chosen.tiles_per_second >= max(others) * (1 + SMALL_MARGIN)
    return clear or record.times >= MOST_TIMES


def measure(
    candidates: Sequence[tuple[str, str]],
    open_one: Callable[[str, str], Encode | None],
    tiles: NDArray[np.uint8],
    lanes: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time encoders by turns.

    Parameters
    ----------
    candidates : sequence of (provider, precision)
        The first one decides how many tiles a try takes, and whether trying is worth it.
    open_one : callable
        (provider, precision) → a function that encodes tiles; None if it does not open here.
    tiles : uint8 [N, S, S, 3]
        The largest batch.
    lanes : int
        Tiles that are encoded side by side.
    clock : callable
        Seconds.

    Returns
    -------
    list of Timing
        Of the candidates that open, best try each; the first alone if it is FAST_ENOUGH.
    """
    opened: dict[tuple[str, str], Encode] = {}
    best: dict[tuple[str, str], float] = {}

    def attempt(name: tuple[str, str], count: int) -> float:
        started = clock()
        opened[name](tiles[:count])
        return max(clock() - started, 1e-9) / count

    count = min(lanes, len(tiles))
    for name in candidates:
        encode = open_one(*name)
        if encode is None:
            continue
        opened[name] = encode
        if len(opened) == 1:
            once = min(attempt(name, count) for _ in range(2))
            if 1 / once >= FAST_ENOUGH:
                return [Timing(*name, 1 / once)]
            # Of as many tiles as a lane takes through the network at once, if that is quick.
            count = min(len(tiles), count * max(1, min(4, int(TRY_SECONDS / (once * count)))))
        attempt(name, count)  # not counted: memory is allocated, code is generated
        best[name] = math.inf
    spent = 0.0
    for number in range(ROUNDS[1]):
        for name in opened:
            seconds = attempt(name, count)
            best[name] = min(best[name], seconds)
            spent += seconds * count
        if number + 1 < ROUNDS[0]:
            continue
        for name in [name for name in opened if best[name] > SLOWER * min(best.values())]:
            del opened[name]
        if len(opened) < 2 or spent > ALL_SECONDS:
            break
    return [Timing(*name, round(1 / seconds, 2)) for name, seconds in best.items()]


def record_path(key: dict[str, Any]) -> Path:
    """Return the file of a key's record."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / FOLDER / f"{digest[:32]}.json"


def read_record(key: dict[str, Any]) -> Record | None:
    """Return what was measured before; None if nothing was, or the file is damaged or another user's."""
    content = read_own(record_path(key))
    if content is None:
        return None
    try:
        fields = json.loads(content)
        if fields["format"] != FORMAT or fields["key"] != key:
            return None
        timings = tuple(Timing(**timing) for timing in fields["timings"])
        measured, times = datetime.fromisoformat(fields["measured"]), int(fields["times"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    sound = bool(timings) and measured.tzinfo is not None and all(_is_sound(t) for t in timings)
    return Record(timings, measured, times) if sound else None


def _is_sound(timing: Timing) -> bool:
    speed = timing.tiles_per_second
    return (
        timing.provider in FASTEST_FIRST
        and timing.precision in PRECISIONS
        and isinstance(speed, float | int)
        and 0 < speed < math.inf
    )


def store_record(key: dict[str, Any], record: Record) -> bool:
    """Keep a record for the next run; return False if the file system refuses."""
    content = {
        "format": FORMAT,
        "key": key,
        "measured": record.measured.isoformat(timespec="seconds"),
        "times": record.times,
        "timings": [asdict(timing) for timing in record.timings],
    }
    return store_own(record_path(key), json.dumps(content, indent=1).encode())
