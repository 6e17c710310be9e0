"""Slides whose levels are decoded in segments (tiles, strips, chunks), each once, by many threads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.decoding.batch import (
    LEVEL_KEYS,
    Decoded,
    Key,
    cut_squares,
    decoded,
    needed_segments,
    take_spare,
)
from mclst.runtime.errors import MclstError, ResourceError, SlideError
from mclst.runtime.slide.base import RGB, Level, Slide, TileReadError
from mclst.runtime.slide.segment_cache import SegmentCache
from mclst.runtime.storage.files import ByteSource
from mclst.sections.errors import is_out_of_memory
from mclst.sections.location import SlideLocation

S = TypeVar("S", bound=ByteSource)

PX_AHEAD = 32 << 20
"""Pixels of segments that are fetched together."""


@dataclass(frozen=True)
class SegmentedLevel(ABC, Generic[S]):
    """A level by its segments.

    width, height: of the level, px. segment_width, segment_height: of a full segment, px.
    """

    width: int
    height: int
    segment_width: int
    segment_height: int

    @property
    def columns(self) -> int:
        """Number of segments across."""
        return -(-self.width // self.segment_width)

    @property
    def rows(self) -> int:
        """Number of segments down."""
        return -(-self.height // self.segment_height)

    def key(self, level: int, column: int, row: int) -> Key:
        """A segment of this level, which is number `level`, in the cache."""
        return level * LEVEL_KEYS + row * self.columns + column

    @abstractmethod
    def decode(self, source: S, column: int, row: int) -> NDArray[np.uint8]:
        """Decode a segment to uint8 [h, w, 3], cropped to the image.

        Raises OSError if the source cannot be read, any other exception if the segment is damaged.
        """

    @abstractmethod
    def expect(self, source: S, keys: NDArray[np.int64]) -> None:
        """Announce to a source that reads ahead the segments [n, 2] (column, row) that will be decoded."""

    @abstractmethod
    def prefetch(self, source: S, keys: NDArray[np.int64]) -> None:
        """Let it read segments [n, 2] (column, row) together, which are decoded next."""

    def decodes_many(self, source: S) -> bool:
        """Whether `decode_many` is there: several segments in one call, outside the GIL."""
        return False

    def decode_many(self, source: S, keys: Sequence[Key], spare: list[Decoded]) -> Sequence[Decoded | None]:
        """Decode several segments of this level; None for those that `decode` must take.

        spare: memory to write to.
        """
        return [None for _ in keys]

    def read_into(
        self, pixels: NDArray[np.uint8], x: int, y: int, segment: Callable[[int, int], NDArray[np.uint8]]
    ) -> None:
        """Fill uint8 [h, w, 3] with the rectangle at (x, y), which is inside the level.

        segment: (column, row) → the decoded segment.
        """
        wide, high = self.segment_width, self.segment_height
        height, width, _ = pixels.shape
        for row in range(y // high, (y + height - 1) // high + 1):
            top = row * high - y
            y0, y1 = max(0, top), min(height, top + high)
            for column in range(x // wide, (x + width - 1) // wide + 1):
                left = column * wide - x
                x0, x1 = max(0, left), min(width, left + wide)
                pixels[y0:y1, x0:x1] = segment(column, row)[y0 - top : y1 - top, x0 - left : x1 - left]


class SegmentedSlide(Slide, Generic[S]):
    """A slide of such levels; all threads share a bounded cache of decoded segments.

    source: what the levels decode from, released by `close`. named: what a segment is called in messages.
    """

    def __init__(
        self,
        path: SlideLocation,
        source: S,
        parts: Sequence[SegmentedLevel[S]],
        *,
        named: str = "tile",
        **properties: Any,
    ) -> None:
        super().__init__(
            path,
            levels=tuple(
                Level(
                    part.width,
                    part.height,
                    downsample(parts[0], part),
                    (part.segment_width, part.segment_height),
                )
                for part in parts
            ),
            **properties,
        )
        self._parts = parts
        self._source: S | None = source
        self._named = named
        self._seconds_file = 0.0
        self.cache = SegmentCache()
        self._spare: list[Decoded] = []

    @property
    def seconds_file(self) -> float:
        """Seconds that all threads spent reading segments so far."""
        return self._seconds_file if self._source is None else self._source.seconds

    def _read_inside(self, pixels: NDArray[np.uint8], x: int, y: int, level: int) -> None:
        source = self._source
        if source is None:
            raise SlideError(f"{self.path} is closed; open it again to read from it")
        segment, part = partial(self._segment, source, level), self._parts[level]
        if not source.reads_ahead:
            part.read_into(pixels, x, y, segment)
            return
        height, width, _ = pixels.shape
        columns = range(x // part.segment_width, (x + width - 1) // part.segment_width + 1)
        # In bands, so that what is fetched together fits into what is held.
        at_once = max(1, PX_AHEAD // (part.segment_width * part.segment_height * len(columns)))
        band = at_once * part.segment_height
        for top in range(y // band * band, y + height, band):
            first, end = max(top, y), min(top + band, y + height)
            rows = range(first // part.segment_height, (end - 1) // part.segment_height + 1)
            keys = [(c, r) for r in rows for c in columns if part.key(level, c, r) not in self.cache]
            part.prefetch(source, np.array(keys, np.int64).reshape(-1, 2))
            part.read_into(pixels[first - y : end - y], x, first, segment)

    def read_squares(
        self, squares: NDArray[np.uint8], corners: NDArray[np.int64], *, level: int = 0, pad: RGB = (0, 0, 0)
    ) -> list[tuple[int, str]]:
        """See Slide; where the level decodes many segments at once, in few calls outside the GIL."""
        part, source = self._parts[level], self._source
        if source is None or len(squares) < 2 or not part.decodes_many(source):
            return super().read_squares(squares, corners, level=level, pad=pad)
        corners = np.ascontiguousarray(corners)
        size, segment = (part.width, part.height), (part.segment_width, part.segment_height)
        needed, counts = needed_segments(squares, corners, size, segment, level, bytes(pad))
        keys, uses = needed.tolist(), counts.tolist()
        segments, mine, others, dropped = self.cache.begin(keys, uses)
        if mine:
            self._decode(part, source, keys, uses, mine, segments, dropped)
        for place, future in others.items():
            if future.exception() is None:
                segments[place] = decoded(future.result())
        if others:
            self.cache.count_uses(keys, uses, others)
        lacking = cut_squares(squares, corners, size, segment, needed, segments)
        take_spare(segments, dropped, self._spare)
        # What cannot be decoded, or not read, is told as for a square alone.
        return self._read_one_by_one(squares, corners, lacking, level, pad)

    def _decode(
        self,
        part: SegmentedLevel[S],
        source: S,
        keys: list[Key],
        uses: list[int],
        mine: list[int],
        segments: list[Decoded | None],
        dropped: list[int],
    ) -> None:
        """Decode segments that `begin` left to this thread to their places; those that fail stay None."""
        results: list[Decoded | BaseException] = [_NotDecoded()] * len(mine)
        try:
            many = part.decode_many(source, [keys[place] for place in mine], self._spare)
            for number, segment in enumerate(many):
                results[number] = segment or self._decode_alone(part, source, keys[mine[number]])
        finally:
            self.cache.finish(keys, uses, mine, results, dropped)
        for place, result in zip(mine, results, strict=True):
            if isinstance(result, Decoded):
                segments[place] = result

    def _decode_alone(self, part: SegmentedLevel[S], source: S, key: Key) -> Decoded | Exception:
        row, column = divmod(key % LEVEL_KEYS, part.columns)
        try:
            return decoded(np.ascontiguousarray(part.decode(source, column, row)))
        except Exception as error:  # noqa: BLE001 - raised for the squares that need it
            return error

    def expect(self, corners: NDArray[np.int64], side: int, level: int) -> None:
        """Count the squares that need each segment, so that it is evicted after its last use."""
        part = self._parts[level]
        first, last = [], []
        for axis, (size_px, segment_px) in enumerate(
            ((part.width, part.segment_width), (part.height, part.segment_height))
        ):
            start = np.clip(corners[:, axis], 0, size_px)
            stop = np.clip(corners[:, axis] + side, 0, size_px)
            first.append(start // segment_px)
            last.append(np.where(stop > start, -(-stop // segment_px), start // segment_px))
        inside = (last[0] > first[0]) & (last[1] > first[1])
        columns, rows = part.columns + 1, part.rows + 1
        # Each square adds 1 to a rectangle of segments: mark its corners, then sum along both axes (2-D
        # prefix sum).
        differences = np.zeros(rows * columns, np.int64)
        corner_signs = ((1, first, first), (-1, last, first), (-1, first, last), (1, last, last))
        for sign, (column, _), (_, row) in corner_signs:
            differences += sign * np.bincount((row * columns + column)[inside], minlength=rows * columns)
        counts = differences.reshape(rows, columns).cumsum(axis=0).cumsum(axis=1)
        row, column = np.nonzero(counts)
        source = self._source
        if source is not None and source.reads_ahead:
            part.expect(source, np.stack([column, row], axis=1))
        keys = level * LEVEL_KEYS + row * part.columns + column
        self.cache.expect(dict(zip(keys.tolist(), counts[row, column].tolist(), strict=True)))

    def _segment(self, source: S, level: int, column: int, row: int) -> NDArray[np.uint8]:
        part = self._parts[level]
        try:
            return self.cache.get(part.key(level, column, row), partial(part.decode, source, column, row))
        except MclstError:
            raise
        except Exception as exc:
            if is_out_of_memory(exc):
                raise ResourceError(
                    f"{self.path}: no memory is left to decode a tile; use fewer --workers"
                ) from exc
            if isinstance(exc, OSError):
                raise SlideError(
                    f"{self.path} can no longer be read ({exc.strerror}); check the disk"
                ) from exc
            raise TileReadError(
                f"{self.path}: the {self._named} at column {column}, row {row} of level {level} cannot be "
                f"decoded: {exc}"
            ) from exc

    def close(self) -> None:
        """Release the source, which closes after the last read in other threads."""
        source, self._seconds_file, self._source = self._source, self.seconds_file, None
        self.cache.clear()
        self._spare.clear()
        if source is not None:
            source.close()


class _NotDecoded(Exception):
    """The thread that was to decode a segment was stopped."""


def is_reduction(full: SegmentedLevel[S], finer: SegmentedLevel[S], part: SegmentedLevel[S]) -> bool:
    """Whether a level is the whole slide, reduced: both ratios agree within a pixel or 1 %."""
    if part.width >= finer.width or part.height > finer.height:
        return False
    ratio = full.width / part.width
    return abs(full.height / ratio - part.height) <= max(1.5, 0.01 * part.height)


def downsample(full: SegmentedLevel[S], part: SegmentedLevel[S]) -> float:
    """Level-0 pixels per pixel: an integer if rounding of the level's size explains the rest."""
    ratios = full.width / part.width, full.height / part.height
    nearest = round(sum(ratios) / 2)
    # On a small level rounding explains several: writers that halve again and again give a power of two.
    for factor in (1 << (nearest - 1).bit_length(), 1 << (nearest.bit_length() - 1), nearest):
        if abs(full.width / factor - part.width) <= 1 and abs(full.height / factor - part.height) <= 1:
            return float(factor)
    return sum(ratios) / 2
