"""A ring of tile buffers: reading, upload, encoding and gathering of several batches overlap, on any device.

The ring knows no device. `Stages` starts work and reports when it is done; work may finish late and in any
order that its dependencies allow. Life cycles:

    free ─► read by the tiles' threads ─► uploaded ─► free           a slot's host buffer
            uploaded ─► encoded ─► gathered                          a slot's device buffers
            all batches of a group gathered ─► yielded ─► free       a group's embeddings
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.batches import Buffers, TileBatch

# Groups of embeddings in memory: one is retrieved while the next is gathered.
GROUPS = 2


class Stages(Protocol):
    """An encoder as asynchronous steps. Each step returns a ticket that stands for its work.

    Attributes
    ----------
    slots : int
        Batches in memory.
    groups : int
        Groups of embeddings in memory.
    """

    slots: int
    groups: int

    def tiles(self, slot: int) -> NDArray[np.uint8]:
        """Host buffer of a slot: uint8 [batch, H, W, 3]."""

    def upload(self, slot: int, n: int, after: Sequence[Any]) -> Any:
        """Copy the first n tiles of a slot to the device after the tickets `after`; returns a ticket."""

    def encode(self, slot: int, n: int, after: Sequence[Any]) -> Any:
        """Encode the first n tiles of a slot; returns a ticket."""

    def gather(self, slot: int, n: int, group: int, at: int, after: Sequence[Any]) -> Any:
        """Copy their embeddings into a group from row `at` on; returns a ticket."""

    def group(self, group: int, n: int) -> Any:
        """First n rows of a group: float32 [n, D] on host or device, valid until the group is reused."""

    def done(self, ticket: Any) -> bool:
        """Whether the work is done. Raises its error."""

    def wait(self, ticket: Any) -> None:
        """Wait for the work. Raises its error."""

    def close(self) -> None:
        """Finish or abandon pending work and free all memory."""


class Source(Protocol):
    """A source of tile batches, such as `Tiles`."""

    def stream(self, buffers: Buffers) -> Generator[TileBatch]:
        """Read the batches into `buffers`."""


@dataclass(frozen=True)
class Group:
    """Spots that are retrieved together.

    Attributes
    ----------
    rows : int64 [n]
        Rows of the spots.
    values : float32 [n, D]
        The encoder's output for them, on the host or the device.
    """

    rows: NDArray[np.int64]
    values: Any


@dataclass(frozen=True)
class Step:
    """A batch that was read.

    Attributes
    ----------
    failed : tuple of (int, str)
        Row and reason of each tile that could not be read.
    count : int
        Tiles in the batch, including these.
    group : Group or None
        A group that is complete.
    """

    failed: tuple[tuple[int, str], ...]
    count: int
    group: Group | None


@dataclass
class _Gathering:
    """A group that is being filled, or full and not yet yielded."""

    group: int
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    tickets: list[Any] = field(default_factory=list)
    count: int = 0


class Ring:
    """Runs the tiles of a slide through stages, once.

    Parameters
    ----------
    stages : Stages
        Closed at the end of `run`.
    """

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._free = deque(range(stages.slots))
        self._uploading: list[tuple[int, Any]] = []
        self._free_groups = deque(range(stages.groups))
        self._full: deque[_Gathering] = deque()
        self._filling: _Gathering | None = None
        self._yielded: int | None = None
        self._encoded: dict[int, Any] = {}
        self._gathered: dict[int, Any] = {}
        self._last_encode: list[Any] = []

    def take(self, *, wait: bool) -> int | None:
        """A slot whose buffer may be written; None if there is none and `wait` is False."""
        if not self._free:
            if wait:
                self._stages.wait(self._uploading[0][1])
            self._release_uploaded()
        return self._free.popleft() if self._free else None

    def buffer(self, slot: int) -> NDArray[np.uint8]:
        """Host buffer of a slot: uint8 [batch, H, W, 3]."""
        return self._stages.tiles(slot)

    def run(self, tiles: Source) -> Generator[Step]:
        """Encode all tiles.

        Parameters
        ----------
        tiles : Source

        Yields
        ------
        Step
            Every batch and every complete group, in order. A group's `values` are valid until the next step.

        Notes
        -----
        Errors of reading and of the stages are raised here. Close the generator to stop early: this ends the
        reading threads and closes the stages.
        """
        try:
            with closing(tiles.stream(self)) as reading:
                for batch in reading:
                    self._reclaim_group()
                    self._start(batch)
                    yield Step(batch.failed, len(batch.rows) + len(batch.failed), self._complete())
            while self._full:
                self._reclaim_group()
                yield Step((), 0, self._pop_group())
        finally:
            self._stages.close()

    def encoded(self) -> Iterator[Group]:
        """Yield the batches of groups still to come that are encoded, in order; views until the next step."""
        for gathering in (*self._full, *([] if self._filling is None else [self._filling])):
            at = 0
            for rows, ticket in zip(gathering.rows, gathering.tickets, strict=True):
                if not self._stages.done(ticket):
                    return
                yield Group(rows, self._stages.group(gathering.group, at + len(rows))[at:])
                at += len(rows)

    def _release_uploaded(self) -> None:
        """Free the host buffers whose tiles are on the device."""
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
            gathering = self._gathering()
            uploaded = stages.upload(slot, n, self._pending(self._encoded, slot))
            self._uploading.append((slot, uploaded))
            # The encoder has one workspace, so batches are encoded one after another.
            encoded = stages.encode(
                slot, n, [uploaded, *self._pending(self._gathered, slot), *self._last_encode]
            )
            gathered = stages.gather(slot, n, gathering.group, gathering.count, [encoded])
            self._encoded[slot], self._gathered[slot], self._last_encode = encoded, gathered, [encoded]
            gathering.rows.append(batch.rows)
            gathering.tickets.append(gathered)
            gathering.count += n
        else:
            self._free.append(slot)
        if batch.ends_group and self._filling is not None:
            self._full.append(self._filling)
            self._filling = None

    def _gathering(self) -> _Gathering:
        if self._filling is None:
            self._filling = _Gathering(self._free_groups.popleft())
        return self._filling

    def _pending(self, tickets: dict[int, Any], slot: int) -> list[Any]:
        return [tickets[slot]] if slot in tickets else []

    def _complete(self) -> Group | None:
        """The oldest full group, if its work is done or the next batch needs its memory."""
        if not self._full:
            return None
        done = all(self._stages.done(ticket) for ticket in self._full[0].tickets)
        needed = not self._free_groups and self._filling is None
        return self._pop_group() if done or needed else None

    def _pop_group(self) -> Group:
        full = self._full.popleft()
        for ticket in full.tickets:
            self._stages.wait(ticket)
        self._yielded = full.group
        return Group(np.concatenate(full.rows), self._stages.group(full.group, full.count))

    def _reclaim_group(self) -> None:
        """Free the group yielded last, which the caller has finished reading."""
        if self._yielded is not None:
            self._free_groups.append(self._yielded)
            self._yielded = None


def encode_now(stages: Stages, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Encode `tiles` uint8 [N, H, W, 3], N > 0, batch by batch: float32 [N, D] on the host.

    A group of `stages` must hold at least one batch.
    """
    encoded = []
    size = len(stages.tiles(0))
    for start in range(0, len(tiles), size):
        batch = tiles[start : start + size]
        n = len(batch)
        stages.tiles(0)[:n] = batch
        ticket = stages.gather(0, n, 0, 0, [stages.encode(0, n, [stages.upload(0, n, [])])])
        stages.wait(ticket)
        encoded.append(np.array(stages.group(0, n)))
    return np.concatenate(encoded)
