"""Which encoder is the fastest here: each is tried by turns with the fastest so far, for a limited time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.encoder.session import Session
from mclst.runtime.providers.timings import FAST_ENOUGH, Candidate, Timing, fastest

ROUNDS = (2, 5)
"""Rounds of the fastest so far and the next candidate: at least, and at most."""
SLOWER, FAR_SLOWER = 1.3, 3.0
"""A candidate this much slower is given up after the first rounds; one far slower is tried with few tiles."""
TRY_SECONDS, ALL_SECONDS = 0.1, 3.0
"""About how long one try may take, and all of them before no more than the first rounds are made."""
LIMIT_SECONDS, LIMIT_SHARE = 1.0, 0.02
"""What a run spends on trying encoders beside the one it opens anyway: seconds, or a share of its time."""
LONG_TRY = 0.5
"""Seconds of a try that nothing short holds up; it is made once."""


@dataclass(frozen=True)
class Trial:
    """How encoders are opened and tried.

    Parameters
    ----------
    open_one : callable
        Candidate → its session; None if it does not open here.
    fewer_lanes : callable
        Candidate → the one to try if it is the fastest, and so on while it is; None for none.
    tiles : uint8 [N, S, S, 3]
        The largest batch.
    lanes : int
        Tiles that are encoded side by side.
    run_tiles : int, optional
        How many tiles the run encodes, by which the time for trying is limited; None for no limit.
    clock : callable
        Seconds.
    """

    open_one: Callable[[Candidate], Session | None]
    fewer_lanes: Callable[[Candidate], Candidate | None]
    tiles: NDArray[np.uint8]
    lanes: int
    run_tiles: int | None = None
    clock: Callable[[], float] = time.perf_counter


def is_worth_trying(tiles: int, tiles_per_second: float, run_tiles: int | None, spent: float = 0.0) -> bool:
    """Whether one more encoder can probably be tried within the limit.

    Parameters
    ----------
    tiles : int
        Of one try.
    tiles_per_second : float
        Of the fastest encoder so far.
    run_tiles : int or None
        How many tiles the run encodes; None for no limit.
    spent : float
        Seconds.
    """
    return spent + (1 + 2 * ROUNDS[0]) * tiles / tiles_per_second <= time_limit(run_tiles, tiles_per_second)


def time_limit(run_tiles: int | None, tiles_per_second: float) -> float:
    """Return the seconds that a run spends on trying."""
    return math.inf if run_tiles is None else max(LIMIT_SECONDS, LIMIT_SHARE * run_tiles / tiles_per_second)


def measure(
    candidates: Sequence[Candidate],
    trial: Trial,
    sessions: dict[Candidate, Session],
    known: Container[Candidate] = (),
) -> tuple[list[Timing], list[Candidate]]:
    """Time encoders, each by turns with the fastest so far; at most two are open at once.

    Parameters
    ----------
    candidates : sequence of Candidate
        The first one that opens is what the run takes unless another is faster. It decides how many tiles a
        try takes, and how long trying the others may take.
    trial : Trial
    sessions : dict
        Empty; holds those that are open, at the end that of the fastest.
    known : container of Candidate
        Those that need not be tried with fewer lanes.

    Returns
    -------
    timings : list of Timing
        Of the candidates that were tried, the best try each; of the first alone if it is FAST_ENOUGH.
    refused : list of Candidate
        Those that do not open.
    """
    trials = _Trials(trial, sessions)
    pending = iter(candidates)
    if not any(trials.begin(name) for name in pending):
        return [], trials.refused
    if 1 / trials.quickest < FAST_ENOUGH:
        for name in pending:
            if not trials.has_time():
                break
            trials.compete(name)
        while trials.has_time():
            chosen = trials.keep_fastest()
            fewer = trial.fewer_lanes(chosen)
            if fewer is None or fewer in trials.best or fewer in known:
                break
            if not (trials.opens(chosen) and trials.compete(fewer)):
                break
    return trials.timings, trials.refused


class _Trials:
    """Tries of encoders, and what they took; best: seconds per tile of each."""

    def __init__(self, trial: Trial, sessions: dict[Candidate, Session]) -> None:
        self.best: dict[Candidate, float] = {}
        self.refused: list[Candidate] = []
        self._trial, self._sessions, self._clock = trial, sessions, trial.clock
        self._few = self._tiles = min(trial.lanes, len(trial.tiles))
        self._opening = self._encoding = self._begun = 0.0
        self._limit = ALL_SECONDS

    @property
    def quickest(self) -> float:
        """Seconds per tile of the fastest so far."""
        return min(self.best.values())

    @property
    def timings(self) -> list[Timing]:
        """Of all that were tried."""
        return _timings(self.best)

    def begin(self, name: Candidate) -> bool:
        """Open and try the first encoder, the measure of others' tries; False if it does not open."""
        if not self.opens(name):
            return False
        self.best[name] = self._try(name, self._few)
        if self._few * self.best[name] <= LONG_TRY:
            self.best[name] = min(self.best[name], self._try(name, self._few))
        self._begun = self._clock()
        self._limit = min(ALL_SECONDS, time_limit(self._trial.run_tiles, 1 / self.quickest))
        # Of as many tiles as a lane takes through the network at once, if that is quick.
        times = min(4, int(TRY_SECONDS / (self.quickest * self._few)))
        if times > 1 and 1 / self.quickest < FAST_ENOUGH:
            self._tiles = min(len(self._trial.tiles), times * self._few)
            self._try(name, self._tiles)
        return True

    def has_time(self) -> bool:
        """Whether one more can probably be tried in time; the first other one even if it opens slowly."""
        spent = self._clock() - self._begun + (self._opening if len(self.best) > 1 else 0.0)
        return is_worth_trying(self._tiles, 1 / self.quickest, self._trial.run_tiles, spent)

    def opens(self, name: Candidate) -> bool:
        """Open an encoder unless it is open; return whether it does."""
        started = self._clock()
        if name not in self._sessions:
            session = self._trial.open_one(name)
            if session is None:
                self.refused.append(name)
                return False
            self._sessions[name] = session
        self._opening = max(self._opening, self._clock() - started)
        return True

    def compete(self, name: Candidate) -> bool:
        """Try one by turns with the open one, and leave the faster open; False if it does not open."""
        if not self.opens(name):
            return False
        seconds = self._try(name, self._few)  # not counted: memory is allocated, code is generated
        far = seconds > FAR_SLOWER * min(self.best[each] for each in self._sessions if each != name)
        for number in range(ROUNDS[1]):
            for each in self._sessions:
                if each == name or self._tiles * self.best[each] <= LONG_TRY:
                    seconds = self._try(each, self._few if each == name and far else self._tiles)
                    self.best[each] = min(self.best.get(each, math.inf), seconds)
            both = [self.best[each] for each in self._sessions]
            enough = number + 1 >= ROUNDS[0] or self._tiles * min(both) > LONG_TRY
            if enough and (max(both) > SLOWER * min(both) or self._encoding > self._limit):
                break
        self._close_all_but(fastest(_timings({each: self.best[each] for each in self._sessions})).name)
        return True

    def keep_fastest(self) -> Candidate:
        """Close all others; return it."""
        chosen = fastest(self.timings).name
        self._close_all_but(chosen)
        return chosen

    def _try(self, name: Candidate, tiles: int) -> float:
        """Seconds per tile."""
        started = self._clock()
        self._sessions[name].encode(self._trial.tiles[:tiles])
        seconds = max(self._clock() - started, 1e-9)
        self._encoding += seconds
        return seconds / tiles

    def _close_all_but(self, name: Candidate) -> None:
        for each in [each for each in self._sessions if each != name]:
            del self._sessions[each]


def _timings(seconds: Mapping[Candidate, float]) -> list[Timing]:
    return [Timing(*name[:2], round(1 / each, 2), name[2]) for name, each in seconds.items()]
