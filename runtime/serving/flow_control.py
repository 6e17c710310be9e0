"""How many requests a server is given at once, and how often and how long one that fails is tried again."""

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
"""Before the second try of a request, and before any; doubled in between, and up to half of it left to chance."""

ANSWER_S = 60.0
"""How long an answer may take; twice as long after each one that took longer."""

NOTICE_S = 5.0
"""A server that gives no answer for so long is spoken of."""


class TryAgain(Exception):
    """A request that may be answered if it is sent again; the text says why it was not."""


class Busy(TryAgain):
    """The server is there and takes no more for now."""


class Lost(TryAgain):
    """No answer came: no connection, one that broke, an answer cut off or too late, or a server that failed."""


@dataclass
class Counts:
    """Of requests: answered; tried again, after Busy (rejected) or Lost (lost); the most that were under way at once.

    busy_s: seconds with any under way.
    """

    answered: int = 0
    retried: int = 0
    rejected: int = 0
    lost: int = 0
    most_at_once: int = 0
    busy_s: float = 0.0

    def as_json(self) -> dict[str, int]:
        """The numbers of requests."""
        return {name: value for name, value in asdict(self).items() if name != "busy_s"}


class FlowControl:
    """Sends requests, from one event loop: never more at once than a window, which follows what becomes of them.

    The window opens and closes as TCP's does (RFC 5681): one more per answer at first, then one more per windowful; half
    of it after a Busy, one after a Lost; requests that were already under way do not close it twice.
    """

    def __init__(
        self,
        most: int,
        patience_s: float,
        where: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """most: requests at once. patience_s: how long a server may answer nothing at all. where: it, for people."""
        self.where = where
        self.tell: Callable[[str], None] = lambda text: None
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

    async def send(self, request: Callable[[], Awaitable[T]]) -> T:
        """The answer of `request`, which is called until it raises no TryAgain.

        Raises ResourceError where the server has answered nothing, neither this request nor another, for the
        patience's time; and what else `request` raises.
        """
        tries = late = 0
        while True:
            era, started = await self._enter(), self._clock()
            try:
                async with asyncio.timeout(self._limit(late)):
                    answer = await request()
            except TimeoutError:
                late += 1
                why: TryAgain = Lost("it gave no answer in time")
            except TryAgain as failure:
                why = failure
            else:
                self._went_well()
                return answer
            finally:
                await self._leave()
            self._went_wrong(why, era, started)
            await self._pause(self._pause_s(tries))
            tries += 1

    def _limit(self, late: int) -> float:
        """Seconds for an answer; raises ResourceError where patience is at its end already."""
        left = self._patience_s
        if self._failing_since is not None:
            left -= self._clock() - self._failing_since
            if left <= 0 or self.gave_up:
                raise self._end()
        return min(left, math.ldexp(ANSWER_S, late))

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

    def _went_well(self) -> None:
        self.counts.answered += 1
        if self._noticed and self._failing_since is not None:
            self.tell(f"{self.where} answers again, after {self._clock() - self._failing_since:.0f} s")
        self._failing_since, self._noticed = None, False
        grown = self.window + (1 if self.window < self._threshold else 1 / self.window)
        self.window = min(float(self._most), grown)

    def _went_wrong(self, why: TryAgain, era: int, started: float) -> None:
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
            self.tell(f"{self.where}: {why}; trying again, for {self._patience_s:.0f} s in all")

    def _end(self) -> ResourceError:
        self.gave_up = True
        return ResourceError(
            f"{self.where}: {self._why}, for {self._patience_s:.0f} s (--server-patience); see that it runs and is not overloaded"
        )
