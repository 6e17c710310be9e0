"""Tiles encoded ahead of their rows: kept every few seconds, so that a run that dies loses no more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.encoder.ring import Group, Ring
from mclst.runtime.run.context import RunContext
from mclst.runtime.run.early import LateMap

KEEP_SECONDS = 5.0
"""How old the oldest value may be that no file has; a batch under way comes on top."""


class EncodedTiles:
    """The encoder's values on their way to the readout, and those that wait there: for their group, for
    neighbors, for the whole slide.

    Rows are computed in the same groups as in a run that was never stopped, so their values are the same to
    the bit. Fast encoders fill a group before anything is kept.

    Parameters
    ----------
    run : RunContext
    late : LateMap
        The map, which is opened where rows are needed.
    journal : callable
        Starts the journal if it can; returns whether there is one.
    on_device : bool
        Whether values stay on a GPU; these are not kept.
    """

    def __init__(
        self, run: RunContext, late: LateMap, journal: Callable[[], bool], *, on_device: bool
    ) -> None:
        self._run, self._late, self._journal, self._on_device = run, late, journal, on_device
        self._tiles, self._means = run.tiles, run.neighborhood
        self._kept = np.zeros(len(run.inputs.spots), np.bool_)
        self._restored: dict[int, Group] = {}
        self._since = time.monotonic()
        self._refused = on_device
        if self._means is not None:
            self._tiles.done[:] = self._means.plan(self._tiles.done)

    def restore(self) -> None:
        """Take over what a stopped run kept."""
        if self._on_device:
            return
        tiles, log = self._tiles, self._run.log
        places, group = tiles.places, tiles.groups
        # With its done rows, a group is computed as it was before.
        wanted = np.isin(group, group[~tiles.done])
        rows, values = self._late.writer.read_encoded(wanted, self._run.encoder_dim)
        # Tiles are read by whole batches; a batch with a tile that could not be read is read again.
        batch = places // tiles.batch_size
        there = np.bincount(batch[rows], minlength=len(places))
        whole = there[batch[rows]] == np.bincount(batch)[batch[rows]]
        rows, values = rows[whole], values[whole]
        tiles.encoded[rows] = self._kept[rows] = True
        for number in np.unique(group[rows]).tolist():
            here = group[rows] == number
            self._restored[number] = _in_order(places, rows[here], values[here])
        count = int(np.count_nonzero(~self._late.writer.done[rows]))
        if count:
            log.resumed += count
            log.note(f"{count:,} more tiles of the stopped run are encoded")
            log.advance(count)

    def complete(self, group: Group) -> Iterator[Group]:
        """Yield an encoded group with its restored tiles, after the restored groups that come before it."""
        if not self._restored:
            yield group
            return
        number = int(self._tiles.groups[group.rows[0]])
        yield from self._take(before=number)
        restored = self._restored.pop(number, None)
        if restored is not None:
            rows = np.concatenate([restored.rows, group.rows])
            group = _in_order(self._tiles.places, rows, np.concatenate([restored.values, group.values]))
        yield group

    def rest(self) -> Iterator[Group]:
        """Yield the restored groups that come after all encoded ones."""
        yield from self._take(before=len(self._kept) + 1)

    def _take(self, *, before: int) -> Iterator[Group]:
        for number in sorted(number for number in self._restored if number < before):
            yield self._restored.pop(number)

    def wrote_rows(self) -> None:
        """Note that rows were written: without neighbors, nothing older waits."""
        if self._means is None:
            self._since = time.monotonic()

    def keep(self, ring: Ring) -> None:
        """Keep what is in no file yet, if the oldest of it is old enough."""
        if self._refused or time.monotonic() - self._since < KEEP_SECONDS or not self._journal():
            return
        held = () if self._means is None else self._means.held(self._kept)
        waiting = [*held, *(group for group in ring.encoded() if not self._kept[group.rows].all())]
        if waiting:
            rows = np.concatenate([group.rows for group in waiting])
            try:
                self._late.writer.keep_encoded(rows, np.concatenate([group.values for group in waiting]))
            except OSError as error:
                self._refused = True
                self._run.log.note(
                    f"encoded tiles can no longer be kept ({error.strerror or error}); if this run stops, "
                    f"tiles of up to {self._run.readout.rows_at_once:,} spots are encoded again"
                )
                return
            self._kept[rows] = True
        self._since = time.monotonic()


def _in_order(places: NDArray[np.int64], rows: NDArray[np.int64], values: NDArray[np.float32]) -> Group:
    order = np.argsort(places[rows])
    return Group(rows[order], values[order])
