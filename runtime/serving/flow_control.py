"""Flow control: how many requests run at once, and how failed ones are retried."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

from mclst.runtime.errors import ResourceError

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
"""Pause before the first retry, doubled up to the longest; up to half of it is random."""

ANSWER_S = 60.0
"""Time limit of an answer, doubled after each timeout."""

LATE = "it gave no answer in time"

NOTICE_S = 5.0
"""The user is notified when a server gives no answer for this long."""


class TryAgain(Exception):
    """A request to retry; the text says why."""


class Busy(TryAgain):
    """The server is up and takes no more for now."""


class Lost(TryAgain):
    """No answer: no or a broken connection, a truncated or late answer, or a failed server."""


@dataclass
class Counts:
    """Counts of requests: rejected by Busy, lost by Lost; busy_s: seconds with any under way."""

    answered: int = 0
    retried: int = 0
    rejected: int = 0
    lost: int = 0
    most_at_once: int = 0
    busy_s: float = 0.0

    def as_json(self) -> dict[str, int]:
        """Return the counts."""
        return {name: value for name, value in asdict(self).items() if name != "busy_s"}


class FlowControl:
    """Sends requests from one event loop, at most a window at once.

    The window follows TCP (RFC 5681): it grows by one per answer at first, then by one per window; it halves
    after Busy and falls to one after Lost. Requests already under way then do not shrink it again.

    Parameters
    ----------
    most : int
        Requests at once.
    patience_s : float
        How long a server may answer nothing at all.
    server : str
        Its name, for messages.
    """

    def __init__(
        self,
        most: int,
        patience_s: float,
        server: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.server = server
        self.notify: Callable[[str], None] = lambda text: None
        self.counts = Counts()
        self.gave_up = False
        self.window = 1.0
        self._most, self._patience_s = most, patience_s
        self._threshold = float(most)
        self._clock, self._pause, self._chance = clock, pause, chance
        self._under_way = 0
        self._since = 0.0
        self._era = 0
        self._failing_since: float | None = None
        self._why = ""
        self._noticed = False
        self._room = asyncio.Condition()

    def begin(self) -> None:
        """Begin a run: counts start anew, and a server that was given up gets another chance."""
        self.counts, self.gave_up = Counts(), False
        self._failing_since, self._noticed = None, False

    async def send(self, request: Callable[[], Awaitable[T]]) -> T:
        """Call `request` until it raises no TryAgain, and return its answer.

        Raises ResourceError if the server has answered no request at all for `patience_s`.
        """
        tries = late = 0
        while True:
            era, started = await self._enter(), self._clock()
            try:
                async with asyncio.timeout(self._limit(late)):
                    answer = await request()
            except TimeoutError:
                late += 1
                why: TryAgain = Lost(LATE)
            except TryAgain as failure:
                why = failure
            else:
                self._succeeded()
                return answer
            finally:
                await self._leave()
            self._failed(why, era, started)
            await self._pause(self._pause_s(tries))
            tries += 1

    def _limit(self, late: int) -> float:
        """Return the seconds an answer may take; raise ResourceError if patience has run out."""
        remaining = self._patience_s
        if self._failing_since is not None:
            remaining -= self._clock() - self._failing_since
            if remaining <= 0 or self.gave_up:
                raise self._end()
        return min(remaining, math.ldexp(ANSWER_S, late))

    def _pause_s(self, tries: int) -> float:
        longest = min(LONGEST_PAUSE_S, math.ldexp(FIRST_PAUSE_S, min(tries, 16)))
        return longest * (1 + self._chance()) / 2

    async def _enter(self) -> int:
        async with self._room:
            await self._room.wait_for(lambda: self._under_way < max(1, int(self.window)))
            if not self._under_way:
                self._since = self._clock()
            self._under_way += 1
        self.counts.most_at_once = max(self.counts.most_at_once, self._under_way)
        return self._era

    async def _leave(self) -> None:
        async with self._room:
            self._under_way -= 1
            if not self._under_way:
                self.counts.busy_s += self._clock() - self._since
            self._room.notify_all()

    def _succeeded(self) -> None:
        self.counts.answered += 1
        if self._noticed and self._failing_since is not None:
            self.notify(f"{self.server} answers again, after {self._clock() - self._failing_since:.0f} s")
        self._failing_since, self._noticed = None, False
        grown = self.window + (1 if self.window < self._threshold else 1 / self.window)
        self.window = min(float(self._most), grown)

    def _failed(self, why: TryAgain, era: int, started: float) -> None:
        busy, self._why = isinstance(why, Busy), str(why)
        self.counts.rejected += busy
        self.counts.lost += not busy
        if era == self._era:
            self._era += 1
            self.window = max(1.0, self.window / 2) if busy else 1.0
            self._threshold = max(1.0, self.window)
        if self._failing_since is None:
            self._failing_since = started
        failing_s = self._clock() - self._failing_since
        if failing_s >= self._patience_s:
            raise self._end() from why
        self.counts.retried += 1
        if failing_s >= NOTICE_S and not self._noticed:
            self._noticed = True
            self.notify(f"{self.server}: {why}; trying again, for {self._patience_s:.0f} s in all")

    def _end(self) -> ResourceError:
        self.gave_up = True
        advice = "see that it runs and is not overloaded"
        if self._why == LATE:
            advice = f"{advice}, or give a longer patience or a smaller --batch-size"
        error = ResourceError(
            f"{self.server}: {self._why}, for {self._patience_s:.0f} s (--server-patience); {advice}"
        )
        error.of_every_slide = True
        return error
