"""How fast providers, precisions and lanes run an encoder here: measured by turns, and remembered."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.user_cache import cache_folder, read_own, store_own
from mclst.runtime.choices import FASTEST_FIRST, PRECISIONS
from mclst.runtime.encoder.session import Session

FORMAT = "mclst-encoder-choice/2"
FOLDER = "encoder-choices"

NEAR = 0.04
"""Of candidates this close to the fastest, the one in the higher precision is taken."""
SMALL_MARGIN = 0.1
"""Closer than this, the next runs measure again, until MOST_TIMES."""
MOST_TIMES = 3
SLOW = 25.0
"""Tiles/s below which that takes longer than the margin is worth, and tries are too long to be held up."""
KEPT, KEPT_UNCONFIRMED = timedelta(days=30), timedelta(days=1)
"""How long a record counts. What was measured once is measured again after a day, when whatever held a
candidate up is over.
"""
CLOCK_TOLERANCE = timedelta(days=1)

ROUNDS = (2, 5)
"""Rounds of the fastest so far and the next candidate: at least, and at most."""
SLOWER = 1.3
"""After the first rounds, a candidate this much slower than the other is given up."""
TRY_SECONDS, ALL_SECONDS = 0.1, 3.0
"""About how long one try may take, and all of them before no more than the first rounds are made."""
LONG_TRY = 0.5
"""Seconds of a try that nothing short holds up; it is made once."""
FAST_ENOUGH = 1000.0
"""Tiles/s of the first candidate from which reading, not encoding, bounds a run: nothing is tried."""

Candidate = tuple[str, str, int | None]
"""Provider, precision, and tiles encoded side by side on the CPU; None for one per core."""


@dataclass(frozen=True)
class Timing:
    """A candidate's speed, the best of several tries."""

    provider: str
    precision: str
    tiles_per_second: float
    lanes: int | None = None

    @property
    def name(self) -> Candidate:
        """Provider, precision and lanes."""
        return self.provider, self.precision, self.lanes

    def __str__(self) -> str:
        return describe_candidate(self.name)


def describe_candidate(name: Candidate) -> str:
    """Return "openvino int8", or "openvino int8, 4 lanes"."""
    provider, precision, lanes = name
    return f"{provider} {precision}" + ("" if lanes is None else f", {lanes} lane{'s' * (lanes > 1)}")


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
    """Return the fastest; of those within NEAR of it, one in the highest precision, with a lane per core."""
    limit = max(t.tiles_per_second for t in timings) * (1 - NEAR)
    near = [t for t in timings if t.tiles_per_second >= limit]
    return min(near, key=lambda t: (PRECISIONS.index(t.precision), t.lanes is not None, -t.tiles_per_second))


def is_recent(record: Record, now: datetime) -> bool:
    """Whether a record still counts."""
    return -CLOCK_TOLERANCE <= now - record.measured <= KEPT


def is_settled(record: Record, now: datetime) -> bool:
    """Whether a record is recent and confirmed, and its choice clear or measured often enough."""
    if not is_recent(record, now) or (record.times == 1 and now - record.measured > KEPT_UNCONFIRMED):
        return False
    chosen = fastest(record.timings)
    # Lanes are near each other; what was measured once is confirmed a day later anyway.
    others = [t.tiles_per_second for t in record.timings if t.name[:2] != chosen.name[:2]]
    clear = not others or chosen.tiles_per_second >= max(others) * (1 + SMALL_MARGIN)
    return clear or chosen.tiles_per_second < SLOW or record.times >= MOST_TIMES


def measure(
    candidates: Sequence[Candidate],
    open_one: Callable[[Candidate], Session | None],
    fewer_lanes: Callable[[Candidate], Candidate | None],
    tiles: NDArray[np.uint8],
    lanes: int,
    sessions: dict[Candidate, Session],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time encoders, each by turns with the fastest so far; at most two are open at once.

    Parameters
    ----------
    candidates : sequence of Candidate
        The first one decides how many tiles a try takes, and whether trying is worth it.
    open_one : callable
        Candidate → its session; None if it does not open here.
    fewer_lanes : callable
        Candidate → the one to try if it is the fastest, and so on while it is; None for none.
    tiles : uint8 [N, S, S, 3]
        The largest batch.
    lanes : int
        Tiles that are encoded side by side.
    sessions : dict
        Empty; holds those that are open, at the end that of the fastest.
    clock : callable
        Seconds.

    Returns
    -------
    list of Timing
        Of the candidates that open, best try each; the first alone if it is FAST_ENOUGH.
    """
    best: dict[Candidate, float] = {}
    count, spent = min(lanes, len(tiles)), 0.0

    def attempt(name: Candidate) -> float:
        nonlocal spent
        started = clock()
        sessions[name].encode(tiles[:count])
        seconds = max(clock() - started, 1e-9)
        spent += seconds
        return seconds / count

    def is_opened(name: Candidate) -> bool:
        if name not in sessions and (session := open_one(name)) is not None:
            sessions[name] = session
        return name in sessions

    def close_all_but(name: Candidate) -> None:
        for each in [each for each in sessions if each != name]:
            del sessions[each]

    def compete(name: Candidate) -> None:
        attempt(name)  # not counted: memory is allocated, code is generated
        for number in range(ROUNDS[1]):
            for each in sessions:
                if each == name or count * best[each] <= LONG_TRY:
                    best[each] = min(best.get(each, math.inf), attempt(each))
            seconds = [best[each] for each in sessions]
            slowest, quickest = max(seconds), min(seconds)
            tried = number + 1 >= ROUNDS[0] or count * quickest > LONG_TRY
            if tried and (slowest > SLOWER * quickest or spent > ALL_SECONDS):
                break
        close_all_but(fastest(_timings({each: best[each] for each in sessions})).name)

    for name in candidates:
        if not is_opened(name):
            continue
        if best:
            compete(name)
            continue
        best[name] = min(attempt(name) for _ in range(2))
        if 1 / best[name] >= FAST_ENOUGH:
            return _timings(best)
        # Of as many tiles as a lane takes through the network at once, if that is quick.
        times = max(1, min(4, int(TRY_SECONDS / (best[name] * count))))
        if times > 1:
            count = min(len(tiles), times * count)
            attempt(name)
    while best:
        chosen = fastest(_timings(best)).name
        close_all_but(chosen)
        fewer = fewer_lanes(chosen)
        if fewer is None or fewer in best or not (is_opened(chosen) and is_opened(fewer)):
            break
        compete(fewer)
    return _timings(best)


def _timings(seconds: Mapping[Candidate, float]) -> list[Timing]:
    return [Timing(*name[:2], round(1 / each, 2), name[2]) for name, each in seconds.items()]


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
        and (timing.lanes is None or (type(timing.lanes) is int and timing.lanes > 0))
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
