"""A ring of tile buffers: batches are read, copied up, encoded and gathered at once, whatever device does it.

Nothing here knows a device. `Stages` puts work under way and says when it is done; work may finish late and in any order
that the named dependencies allow. Batches go round like this:

    free ─► read by the tiles' threads ─► copied up ─► free         the host's buffer of a slot
            copied up ─► encoded ─► gathered                        the device's part of it
            gathered, all batches of a group ─► handed over ─► free  a group's embeddings
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.batches import Buffers, TileBatch

GROUPS = 2
"""Groups of embeddings held at once: one is retrieved while the next is gathered."""


class Stages(Protocol):
    """What runs an encoder, step by step. Work under way is stood for by tickets.

    slots: batches held at once. groups: groups held at once.
    """

    slots: int
    groups: int

    def tiles(self, slot: int) -> NDArray[np.uint8]:
        """The host's buffer of a slot: uint8 [batch, H, W, 3]."""

    def upload(self, slot: int, n: int, after: Sequence[Any]) -> Any:
        """Copy the first n tiles of a slot to the device once the tickets `after` are done; a ticket."""

    def encode(self, slot: int, n: int, after: Sequence[Any]) -> Any:
        """Encode them there; a ticket."""

    def gather(self, slot: int, n: int, group: int, at: int, after: Sequence[Any]) -> Any:
        """Put what the encoder gave for them into a group, from its row `at` on; a ticket."""

    def group(self, group: int, n: int) -> Any:
        """The first n rows of a group: float32 [n, D], on the host or on the device; valid until it is used again."""

    def done(self, ticket: Any) -> bool:
        """Whether work is done. Raises what it failed with."""

    def wait(self, ticket: Any) -> None:
        """Until work is done. Raises what it failed with."""

    def close(self) -> None:
        """Wait for or give up what is under way, and give all memory back."""


class Source(Protocol):
    """Where the tiles come from: `Tiles`."""

    def stream(self, buffers: Buffers) -> Generator[TileBatch]:
        """The batches, read into `buffers`."""


@dataclass(frozen=True)
class Group:
    """What the encoder gave for spots that are retrieved together: `rows` int64 [n], `given` float32 [n, D]."""

    rows: NDArray[np.int64]
    given: Any


@dataclass(frozen=True)
class Step:
    """A batch that was read: (row, reason) of its tiles that `failed`, its `count`, and a group that is complete."""

    failed: tuple[tuple[int, str], ...]
    count: int
    group: Group | None


@dataclass
class _Gathering:
    """A group being filled, or filled and not yet handed over."""

    group: int
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    tickets: list[Any] = field(default_factory=list)
    count: int = 0


class Ring:
    """Runs the tiles of a slide through stages; used once."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._free = deque(range(stages.slots))
        self._uploading: list[tuple[int, Any]] = []
        self._free_groups = deque(range(stages.groups))
        self._full: deque[_Gathering] = deque()
        self._filling: _Gathering | None = None
        self._handed: int | None = None
        self._encoded: dict[int, Any] = {}
        self._gathered: dict[int, Any] = {}
        self._last_encode: list[Any] = []

    def take(self, *, wait: bool) -> int | None:
        """A slot whose buffer may be written; None where there is none yet and `wait` is False."""
        if not self._free:
            if wait:
                self._stages.wait(self._uploading[0][1])
            self._let_go()
        return self._free.popleft() if self._free else None

    def buffer(self, slot: int) -> NDArray[np.uint8]:
        """The buffer of a slot: uint8 [batch, H, W, 3]."""
        return self._stages.tiles(slot)

    def run(self, tiles: Source) -> Generator[Step]:
        """Every batch of `tiles`, and every group as it is complete, in order.

        A group's `given` is valid until the next step is asked for. Close the iterator to stop before its end: the
        reading threads then end, and the stages are closed. Raises what reading or a stage raises.
        """
        try:
            with closing(tiles.stream(self)) as reading:
                for batch in reading:
                    self._take_back()
                    self._start(batch)
                    yield Step(batch.failed, len(batch.rows) + len(batch.failed), self._complete())
            while self._full:
                self._take_back()
                yield Step((), 0, self._hand_over())
        finally:
            self._stages.close()

    def _let_go(self) -> None:
        """Free the buffers whose tiles are on the device."""
        waiting = []
        for slot, ticket in self._uploading:
            if self._stages.done(ticket):
                self._free.append(slot)
            else:
                waiting.append((slot, ticket))
        self._uploading = waiting

    def _start(self, batch: TileBatch) -> None:
        slot, n, stages = batch.slot, len(batch.rows), self._stages
        if n:
            into = self._into()
            uploaded = stages.upload(slot, n, self._pending(self._encoded, slot))
            self._uploading.append((slot, uploaded))
            # The encoder's own memory is one: a batch is encoded after another.
            encoded = stages.encode(
                slot, n, [uploaded, *self._pending(self._gathered, slot), *self._last_encode]
            )
            gathered = stages.gather(slot, n, into.group, into.count, [encoded])
            self._encoded[slot], self._gathered[slot], self._last_encode = encoded, gathered, [encoded]
            into.rows.append(batch.rows)
            into.tickets.append(gathered)
            into.count += n
        else:
            self._free.append(slot)
        if batch.ends_group and self._filling is not None:
            self._full.append(self._filling)
            self._filling = None

    def _into(self) -> _Gathering:
        if self._filling is None:
            self._filling = _Gathering(self._free_groups.popleft())
        return self._filling

    def _pending(self, tickets: dict[int, Any], slot: int) -> list[Any]:
        return [tickets[slot]] if slot in tickets else []

    def _complete(self) -> Group | None:
        """The oldest full group, where its work is done or the next batch needs its place."""
        if not self._full:
            return None
        done = all(self._stages.done(ticket) for ticket in self._full[0].tickets)
        needed = not self._free_groups and self._filling is None
        return self._hand_over() if done or needed else None

    def _hand_over(self) -> Group:
        full = self._full.popleft()
        for ticket in full.tickets:
            self._stages.wait(ticket)
        self._handed = full.group
        return Group(np.concatenate(full.rows), self._stages.group(full.group, full.count))

    def _take_back(self) -> None:
        """The group handed over last is no longer looked at."""
        if self._handed is not None:
            self._free_groups.append(self._handed)
            self._handed = None


def encode_now(stages: Stages, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """All of `tiles` uint8 [N, H, W, 3] through `stages` whose groups hold a batch or more, one batch after another.

    float32 [N, D], on the host; N is 1 or more.
    """
    found = []
    size = len(stages.tiles(0))
    for start in range(0, len(tiles), size):
        some = tiles[start : start + size]
        n = len(some)
        stages.tiles(0)[:n] = some
        ticket = stages.gather(0, n, 0, 0, [stages.encode(0, n, [stages.upload(0, n, [])])])
        stages.wait(ticket)
        found.append(np.array(stages.group(0, n)))
    return np.concatenate(found)
