"""Means over a spot's neighbors, group by group as the encoder delivers them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.encoder.ring import Group


@dataclass(frozen=True)
class _Block:
    """A group's values: rows int64 [n], own and context float32 [n, W]."""

    rows: NDArray[np.int64]
    own: NDArray[np.float32]
    context: NDArray[np.float32]


class NeighborhoodMeans:
    """Adds to each spot's own values the mean context values of the spots within a radius.

    The spot itself does not count; one without neighbors, or whose neighbors' tiles cannot be read, adds its
    own context. A group is ready once all groups with its neighbors have been delivered, and its values are
    kept no longer than others need them. Tiles come in an order of places, so few groups wait at a time.

    Parameters
    ----------
    xy_px : float64 [n, 2]
        Centers of the spots, level-0 px.
    group : int64 [n]
        Number of each spot's group, in the order of delivery.
    radius_px : float
    """

    def __init__(self, xy_px: NDArray[np.float64], group: NDArray[np.int64], radius_px: float) -> None:
        n = len(xy_px)
        from scipy.sparse import csr_matrix
        from scipy.spatial import cKDTree

        pairs = cKDTree(xy_px).query_pairs(radius_px, output_type="ndarray")
        one, other = (np.concatenate([pairs[:, i], pairs[:, 1 - i]]) for i in (0, 1))
        self._near = csr_matrix((np.ones(len(one), np.float32), (one, other)), shape=(n, n))
        self._near.sort_indices()
        self._group = group
        groups = int(group.max()) + 1
        # The last group that each one waits for, and the last one that waits for its values.
        self._last = np.arange(groups)
        np.maximum.at(self._last, group[one], group[other])
        self._release = self._last.copy()
        np.maximum.at(self._release, group[other], self._last[group[one]])
        self._wanted = np.ones(groups, np.bool_)
        self._at = np.full(n, -1, np.int64)
        self._blocks: dict[int, _Block] = {}
        self._waiting: list[int] = []

    def plan(self, done: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the rows not to encode, where those of `done` [n] need no result.

        Groups count as a whole, as in `Tiles`: one with a row to do is wanted, and encoded with all groups
        that have its neighbors.
        """
        self._wanted[:] = False
        self._wanted[self._group[~done]] = True
        rows = self._wanted[self._group]
        needed = self._wanted.copy()
        needed[self._group[self._near[rows].indices]] = True
        return ~needed[self._group]

    def wants(self, row: int) -> bool:
        """Whether a row's group needs a result."""
        return bool(self._wanted[self._group[row]])

    def add(self, group: Group) -> Iterator[Group]:
        """Take a group with values float32 [n, 2W], and yield those that are ready, with values [n, W]."""
        number = int(self._group[group.rows[0]])
        own, context = np.split(np.array(group.values, np.float32), 2, axis=1)
        self._blocks[number] = _Block(group.rows, own, context)
        self._at[group.rows] = np.arange(len(group.rows))
        if self._wanted[number]:
            self._waiting.append(number)
        yield from self._ready(number)

    def held(self, but: NDArray[np.bool_]) -> Iterator[Group]:
        """Yield the groups still needed, with values [n, 2W], but for those with all rows in `but` [N]."""
        for block in self._blocks.values():
            if not but[block.rows].all():
                yield Group(block.rows, np.concatenate([block.own, block.context], axis=1))

    def finish(self) -> Iterator[Group]:
        """Yield the groups that still wait, once all have been delivered."""
        yield from self._ready(len(self._last))

    def _ready(self, delivered: int) -> Iterator[Group]:
        for number in [number for number in self._waiting if self._last[number] <= delivered]:
            self._waiting.remove(number)
            block = self._blocks[number]
            yield Group(block.rows, block.own + self._means(block))
        for number in [number for number in self._blocks if self._release[number] <= delivered]:
            if number not in self._waiting:
                self._at[self._blocks.pop(number).rows] = -1

    def _means(self, block: _Block) -> NDArray[np.float32]:
        near = self._near[block.rows]
        columns = np.unique(near.indices)
        columns = columns[self._at[columns] >= 0]
        near = near[:, columns]
        values = np.empty((len(columns), block.own.shape[1]), np.float32)
        of = self._group[columns]
        for number in np.unique(of):
            here = of == number
            values[here] = self._blocks[int(number)].context[self._at[columns[here]]]
        count = np.asarray(near.sum(axis=1), np.float32)
        mean = np.asarray((near @ values) / np.maximum(count, 1), np.float32)
        return np.where(count > 0, mean, block.context)
