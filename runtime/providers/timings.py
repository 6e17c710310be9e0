"""How fast providers, precisions and lanes run an encoder here: what was measured is remembered."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from mclst.kernels.definition.user_cache import cache_folder, read_own, store_own
from mclst.runtime.choices import FASTEST_FIRST, PRECISIONS

FORMAT = "mclst-encoder-choice/3"
FOLDER = "encoder-choices"

NEAR = 0.04
"""Of candidates this close to the fastest, the one in the higher precision is taken."""
SMALL_MARGIN = 0.1
"""A candidate closer than this is measured again by the next runs, until MOST_TIMES."""
MOST_TIMES = 3
KEPT, KEPT_UNCONFIRMED = timedelta(days=30), timedelta(days=1)
"""How long a record counts. What was measured once is measured again after a day, when whatever held a
candidate up is over.
"""
CLOCK_TOLERANCE = timedelta(days=1)

FAST_ENOUGH = 1000.0
"""Tiles/s of the first candidate from which reading, not encoding, bounds a run: nothing is tried."""

Candidate = tuple[str, str, int | None]
"""Provider, precision, and tiles encoded side by side on the CPU; None for one per core."""


@dataclass(frozen=True)
class Timing:
    """A candidate's speed, the best of several tries; times: of how many runs."""

    provider: str
    precision: str
    tiles_per_second: float
    lanes: int | None = None
    times: int = 1

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
    """What was measured of a bundle on a machine, and when last; refused: candidates that do not open."""

    timings: tuple[Timing, ...]
    measured: datetime
    refused: tuple[Candidate, ...] = ()

    @property
    def known(self) -> frozenset[Candidate]:
        """Candidates that were tried, or do not open."""
        return frozenset(t.name for t in self.timings) | frozenset(self.refused)

    def merged(self, other: Record | None) -> Record:
        """Add an earlier record: each candidate's best speed counts, as a slow try says little."""
        if other is None:
            return self
        best = {t.name: t for t in other.timings}
        for timing in self.timings:
            before = best.get(timing.name)
            if before is not None:
                speed = max(timing.tiles_per_second, before.tiles_per_second)
                timing = replace(timing, tiles_per_second=speed, times=timing.times + before.times)
            best[timing.name] = timing
        refused = dict.fromkeys((*other.refused, *self.refused))
        return Record(tuple(best.values()), self.measured, tuple(n for n in refused if n not in best))


def fastest(timings: Sequence[Timing]) -> Timing:
    """Return the fastest; of those within NEAR of it, one in the highest precision, with a lane per core."""
    limit = max(t.tiles_per_second for t in timings) * (1 - NEAR)
    near = [t for t in timings if t.tiles_per_second >= limit]
    return min(near, key=lambda t: (PRECISIONS.index(t.precision), t.lanes is not None, -t.tiles_per_second))


def is_recent(record: Record, now: datetime) -> bool:
    """Whether a record still counts."""
    return -CLOCK_TOLERANCE <= now - record.measured <= KEPT


def not_settled(record: Record, candidates: Sequence[Candidate], now: datetime) -> list[Candidate]:
    """Return which candidates of a recent record to try, in order: the unknown, unconfirmed, and near ones.

    None if reading, not encoding, bounds a run.
    """
    chosen = fastest(record.timings)
    if chosen.tiles_per_second >= FAST_ENOUGH:
        return []
    unknown = [name for name in candidates if name not in record.known]
    by_speed = sorted(record.timings, key=lambda t: -t.tiles_per_second)
    a_day_old = now - record.measured > KEPT_UNCONFIRMED
    unconfirmed = [t.name for t in by_speed if t.times == 1 and a_day_old]
    # Lanes are near each other; what was measured once is confirmed a day later anyway.
    near = [
        t.name
        for t in by_speed
        if t.name[:2] != chosen.name[:2]
        and t.times < MOST_TIMES
        and t.tiles_per_second * (1 + SMALL_MARGIN) > chosen.tiles_per_second
    ]
    return list(dict.fromkeys(unknown + unconfirmed + near))


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
        measured = datetime.fromisoformat(fields["measured"])
        refused = tuple(
            (str(provider), str(precision), lanes) for provider, precision, lanes in fields["refused"]
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    sound = bool(timings) and measured.tzinfo is not None and all(_is_sound(t) for t in timings)
    return Record(timings, measured, refused) if sound else None


def _is_sound(timing: Timing) -> bool:
    speed = timing.tiles_per_second
    return (
        timing.provider in FASTEST_FIRST
        and timing.precision in PRECISIONS
        and isinstance(speed, float | int)
        and 0 < speed < math.inf
        and (timing.lanes is None or (type(timing.lanes) is int and timing.lanes > 0))
        and type(timing.times) is int
        and timing.times > 0
    )


def store_record(key: dict[str, Any], record: Record) -> bool:
    """Keep a record for the next run; return False if the file system refuses."""
    content = {
        "format": FORMAT,
        "key": key,
        "measured": record.measured.isoformat(timespec="seconds"),
        "refused": record.refused,
        "timings": [asdict(timing) for timing in record.timings],
    }
    return store_own(record_path(key), json.dumps(content, indent=1).encode())
