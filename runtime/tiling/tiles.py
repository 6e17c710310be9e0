"""Tiles around positions on a slide, read ahead by threads, in batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mclst.runtime.batches import Buffers, TileBatch
from mclst.runtime.errors import SlideError, SpotsError
from mclst.runtime.resources import THREAD_BYTES, check_limit
from mclst.runtime.slide.base import RGB, Slide

BATCHES_AHEAD = 3
TILES_PER_TASK = 32
RESAMPLED_BYTES = 32 << 20
SAME_MPP = 1.01
MAX_COORDINATE_PX = 2**31


@dataclass(frozen=True)
class TileShape:
    """The tile that an encoder takes.

    Attributes
    ----------
    size_px : int
        Side of the square tile, px.
    mpp : float or None
        µm per tile pixel; None: level-0 pixels, not resampled.
    pad : (int, int, int)
        RGB outside the slide.
    """

    size_px: int
    mpp: float | None = None
    pad: RGB = (0, 0, 0)


@dataclass(frozen=True)
class TilePlan:
    """How tiles are read from a slide.

    level: the level read. read_px: side of the square read, px of that level, then resampled to `size_px`.
    level_mpp: µm per px of that level; None if tiles are level-0 pixels.
    """

    level: int
    read_px: int
    size_px: int
    level_mpp: float | None

    def __str__(self) -> str:
        mpp = "" if self.level_mpp is None else f" ({self.level_mpp:.4g} µm/px)"
        if self.read_px == self.size_px:
            return f"{self.size_px} px of level {self.level}{mpp} as they are"
        change = "reduced" if self.read_px > self.size_px else "enlarged"
        return f"{self.read_px} px of level {self.level}{mpp} {change} to {self.size_px} px"


def plan_tiles(slide: Slide, shape: TileShape, slide_mpp: float | None = None) -> TilePlan:
    """Choose the coarsest level that is at least as fine as the tile, within 1 %; else level 0, enlarged.

    slide_mpp: µm per level-0 px, overriding the slide's. Raises SlideError if the tile has an mpp and the
    slide has none.
    """
    if shape.mpp is None:
        return TilePlan(0, shape.size_px, shape.size_px, None)
    mpp = slide.mpp if slide_mpp is None else slide_mpp
    if mpp is None:
        raise SlideError(
            f"{slide.path} does not say how large its pixels are ({slide.mpp_source}), and the tiles are of "
            f"{shape.mpp:g} µm/px; give --mpp, the µm per pixel of the slide"
        )
    level_mpp = [mpp * level.downsample for level in slide.levels]
    level = max((i for i, value in enumerate(level_mpp) if value <= shape.mpp * SAME_MPP), default=0)
    read_px = max(1, round(shape.size_px * shape.mpp / level_mpp[level]))
    return TilePlan(level, read_px, shape.size_px, level_mpp[level])


def tile_corners(slide: Slide, xy_px: NDArray[np.float64], plan: TilePlan) -> NDArray[np.int64]:
    """Return the upper left corners (x, y) of tiles, px of the plan's level; xy_px: centers, level-0 px."""
    corners: NDArray[np.int64] = np.floor(xy_px / slide.levels[plan.level].downsample).astype(np.int64)
    return corners - plan.read_px // 2


class Tiles:
    """The tiles around positions, in batches; iterate once or more.

    A tile of P px covers [floor(x) - P // 2, floor(x) + P - P // 2) in x, and likewise in y; on a coarser
    level x and y are divided by its downsample first. Batches come in an order that decodes neighboring tiles
    together, the same in every run, whatever `workers`. Memory: the buffers and the slide's cache, however
    many positions there are.

    Parameters
    ----------
    slide : Slide
    xy_px : float64 [n, 2]
        Centers (x, y), level-0 px.
    shape : TileShape
    batch_size : int
        Tiles per batch; the last has fewer.
    workers : int
        Reading threads.
    slide_mpp : float, optional
        µm per level-0 px, overriding the slide's.
    group : int
        Number of batches that come together, or not at all if all their rows are `done`. So a resumed run
        computes the same groups as one that was never stopped.

    Attributes
    ----------
    done : bool [n]
        Rows not to read; may be set.
    encoded : bool [n]
        Rows of whole batches not to read though their group is read; may be set.
    plan : TilePlan
        The level and size read.
    seconds_reading : float
        Seconds that all threads spent reading so far.

    Raises
    ------
    SlideError
        If the tile has an mpp and the slide's is unknown.
    SpotsError
        If a position is not finite or beyond 2³¹ px.
    ValueError
        If a parameter has a wrong shape or is below 1.
    """

    def __init__(
        self,
        slide: Slide,
        xy_px: NDArray[np.float64],
        shape: TileShape,
        *,
        batch_size: int,
        workers: int,
        slide_mpp: float | None = None,
        group: int = 1,
    ) -> None:
        xy_px = np.asarray(xy_px, np.float64)
        if xy_px.ndim != 2 or xy_px.shape[1] != 2:
            raise ValueError(f"positions have shape {xy_px.shape}, where [n, 2] is needed")
        if min(batch_size, workers, shape.size_px, group) < 1:
            raise ValueError("batch_size, workers, group and the tile's size must be 1 or more")
        invalid = np.flatnonzero(~(np.abs(xy_px) < MAX_COORDINATE_PX).all(axis=1))
        if len(invalid):
            x, y = xy_px[invalid[0]]
            raise SpotsError(
                f"spot {invalid[0]} (counted from 0) is at x {x}, y {y}, which is no position on a slide"
            )
        self.slide = slide
        self.shape = shape
        self.plan = plan_tiles(slide, shape, slide_mpp)
        self.batch_size = batch_size
        self.workers = workers
        self.group = group
        self.done = np.zeros(len(xy_px), np.bool_)
        self.encoded = np.zeros(len(xy_px), np.bool_)
        self.seconds_reading = 0.0
        self._lock = Lock()
        self._corners = tile_corners(slide, xy_px, self.plan)
        self._order = self._visiting_order()

    def _visiting_order(self) -> NDArray[np.int64]:
        """By the row of segments in which a tile ends, then by x, so that successive tiles share segments."""
        height = self.slide.levels[self.plan.level].segment_px[1]
        bands = (self._corners[:, 1] + self.plan.read_px - 1) // height
        return np.lexsort((self._corners[:, 1], self._corners[:, 0], bands)).astype(np.int64)

    def _batches(self) -> tuple[list[NDArray[np.int64]], set[int]]:
        """Rows of each batch to be read, and which batches end a group."""
        batches, ends = [], set()
        size = self.batch_size * self.group
        for first in range(0, len(self._order), size):
            group = self._order[first : first + size]
            if self.done[group].all():
                continue
            of_group = [group[at : at + self.batch_size] for at in range(0, len(group), self.batch_size)]
            to_read = [rows for rows in of_group if not self.encoded[rows].all()]
            batches += to_read
            if to_read:
                ends.add(len(batches) - 1)
        return batches, ends

    @property
    def places(self) -> NDArray[np.int64]:
        """Place of each row in the order in which tiles come, int64 [n]; from 0, by batches and groups."""
        places = np.empty(len(self._order), np.int64)
        places[self._order] = np.arange(len(self._order))
        return places

    @property
    def groups(self) -> NDArray[np.int64]:
        """Number of each row's group, int64 [n], in the order in which groups come."""
        return self.places // (self.batch_size * self.group)

    def part_mask(self, part: int, parts: int) -> NDArray[np.bool_]:
        """Bool [n]: rows of one part, counted from 0, if the groups are split evenly into `parts`."""
        groups = self.groups
        mask: NDArray[np.bool_] = groups * parts // (groups.max(initial=0) + 1) == part
        return mask

    def __iter__(self) -> Iterator[TileBatch]:
        buffers = _PlainBuffers(min(self.batch_size, len(self._order)), self.shape.size_px)
        for batch in self.stream(buffers):
            yield batch
            buffers.free.append(batch.slot)

    def stream(self, buffers: Buffers) -> Generator[TileBatch]:
        """Read the batches into `buffers`, as far ahead as buffers are free.

        The caller returns a batch's buffer after use. Closing the iterator ends the reading threads.
        """
        batches, ends = self._batches()
        if batches:
            self.slide.expect(self._corners[np.concatenate(batches)], self.plan.read_px, self.plan.level)
        check_limit(self.workers * THREAD_BYTES)
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="mclst-tiles")
        ahead: deque[tuple[int, list[Future[list[tuple[int, str]]]]]] = deque()
        try:
            for number, rows in enumerate(batches):
                while (following := number + len(ahead)) < len(batches):
                    # Wait only if nothing is read ahead: the caller may hold all other buffers until it gets
                    # a batch.
                    slot = buffers.take(wait=not ahead)
                    if slot is None:
                        break
                    ahead.append((slot, self._submit(pool, batches[following], buffers.buffer(slot))))
                slot, tasks = ahead.popleft()
                failed = [failure for task in tasks for failure in task.result()]
                yield _batch(rows, slot, buffers.buffer(slot), failed, number in ends)
        except BaseException:
            with self.slide.stopping():  # else a silent server would hold up the end
                pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(
        self, pool: ThreadPoolExecutor, rows: NDArray[np.int64], buffer: NDArray[np.uint8]
    ) -> list[Future[list[tuple[int, str]]]]:
        # Two batches are read at a time, so each is split among half of the threads.
        step = min(TILES_PER_TASK, -(-2 * len(rows) // self.workers))
        return [
            pool.submit(self._read_some, rows[at : at + step], buffer[at : at + step])
            for at in range(0, len(rows), step)
        ]

    def _read_some(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> list[tuple[int, str]]:
        start = time.perf_counter()
        plan, side = self.plan, self.plan.read_px
        as_they_are = side == plan.size_px
        # What is resampled takes memory besides, which is bounded.
        step = len(rows) if as_they_are else max(1, RESAMPLED_BYTES // (3 * side * side))
        failed = []
        for at in range(0, len(rows), step):
            some = slice(at, min(at + step, len(rows)))
            squares = out[some] if as_they_are else np.empty((some.stop - at, side, side, 3), np.uint8)
            unread = self.slide.read_squares(
                squares, self._corners[rows[some]], level=plan.level, pad=self.shape.pad
            )
            failed += [(int(rows[at + number]), reason) for number, reason in unread]
            if not as_they_are:
                bad = {number for number, _ in unread}
                for number, pixels in enumerate(squares):
                    if number not in bad:
                        out[at + number] = resample(pixels, plan.size_px)
        with self._lock:
            self.seconds_reading += time.perf_counter() - start
        return failed

    def read_tile(self, row: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Read a position's tile uint8 [H, W, 3], into `out` if given; TileReadError if undecodable."""
        x, y = self._corners[row].tolist()
        plan, side = self.plan, self.plan.size_px
        tile = np.empty((side, side, 3), np.uint8) if out is None else out
        if plan.read_px == side:
            self.slide.read_into(tile, x, y, level=plan.level, pad=self.shape.pad)
        else:
            pixels = self.slide.read(x, y, plan.read_px, plan.read_px, level=plan.level, pad=self.shape.pad)
            tile[:] = resample(pixels, side)
        return tile


def resample(pixels: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Resample a square to uint8 [size_px, size_px, 3].

    Smaller: block means if the sizes divide, else Pillow's Hamming filter, which averages like a box filter
    but does not shift details by fractions of a pixel. Larger: bilinear.
    """
    image = Image.fromarray(pixels)
    side = image.width
    if side % size_px == 0:
        return np.asarray(image.reduce(side // size_px))
    kind = Image.Resampling.HAMMING if side > size_px else Image.Resampling.BILINEAR
    return np.asarray(image.resize((size_px, size_px), kind))


def _batch(
    rows: NDArray[np.int64],
    slot: int,
    buffer: NDArray[np.uint8],
    failed: list[tuple[int, str]],
    ends_group: bool,
) -> TileBatch:
    if failed:
        # Close the gaps that failed tiles leave in the buffer.
        good = np.flatnonzero(~np.isin(rows, [row for row, _ in failed]))
        for to, source in enumerate(good.tolist()):
            if to != source:
                buffer[to] = buffer[source]
        rows = rows[good]
    return TileBatch(rows, buffer[: len(rows)], tuple(failed), ends_group, slot)


class _PlainBuffers:
    """Buffers for plain iteration, allocated on first use."""

    def __init__(self, batch: int, side: int) -> None:
        self.free = deque(range(BATCHES_AHEAD))
        self._shape = (batch, side, side, 3)
        self._buffers: dict[int, NDArray[np.uint8]] = {}

    def take(self, *, wait: bool) -> int | None:
        return self.free.popleft() if self.free else None

    def buffer(self, slot: int) -> NDArray[np.uint8]:
        if slot not in self._buffers:
            self._buffers[slot] = np.empty(self._shape, np.uint8)
        return self._buffers[slot]
