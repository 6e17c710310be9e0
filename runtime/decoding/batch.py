"""Many JPEG segments of a file, and many squares from decoded segments, each in one call outside the GIL.

Between the calls, Python's share per tile is a few microseconds: tables are arrays, and addresses are kept.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ctypes import addressof, c_char
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.decoding.library import compiled, libjpeg

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
SPARE_BYTES = 16 << 20
Key = tuple[int, int, int]
"""Level, column and row of a segment."""


class Decoded(NamedTuple):
    """A segment uint8 [h, w, 3] in C order, and the address of its pixels."""

    pixels: U8
    address: int


class Header(NamedTuple):
    """Header of most streams of a level.

    begins: as in the file. full: with the level's tables and color transform.
    """

    begins: bytes
    full: bytes


def decoded(pixels: U8) -> Decoded:
    """Note the address of a segment."""
    return Decoded(pixels, pixels.__array_interface__["data"][0])


def can_decode() -> bool:
    """Whether batches are decoded here: the part is compiled, and there is a libjpeg-turbo."""
    return libjpeg() is not None


class Layout(NamedTuple):
    """Where the segments of a level are.

    size, segment: of the level and of a full segment, (width, height) in px. offsets, counts: int64, bytes in
    the file of all segments, row by row. addresses: of these two arrays.
    """

    size: tuple[int, int]
    segment: tuple[int, int]
    offsets: I64
    counts: I64
    addresses: tuple[int, int]


def layout(size: tuple[int, int], segment: tuple[int, int], offsets: I64, counts: I64) -> Layout:
    """Note the addresses of the arrays, which are copied where they are not in C order."""
    offsets, counts = (np.ascontiguousarray(array, np.int64) for array in (offsets, counts))
    return Layout(size, segment, offsets, counts, (offsets.ctypes.data, counts.ctypes.data))


def decode_segments(
    file: int, header: Header, level: Layout, keys: Sequence[Key], spare: list[Decoded]
) -> tuple[list[Decoded | None], float]:
    """Decode segments of an open file.

    Parameters
    ----------
    file : int
        Descriptor.
    header : Header
    level : Layout
    keys : sequence of Key
    spare : list of Decoded
        Memory to write to; used up.

    Returns
    -------
    list of uint8 [h, w, 3] or None
        Cropped to the level. None where it takes another way: another header, not three colors, damaged.
    float
        Seconds of reading.
    """
    functions, library = compiled(), libjpeg()
    assert functions is not None and library is not None
    (width, height), (wide, high) = level.size, level.segment
    last_column, last_row = (width - 1) // wide, (height - 1) // high
    full, segments = (high, wide, 3), []
    for _, column, row in keys:
        if column < last_column and row < last_row:
            segments.append(_memory(full, spare))
        else:
            shape = (min(high, height - row * high), min(wide, width - column * wide), 3)
            segments.append(_memory(shape, spare))
    table = np.fromiter(chain.from_iterable(keys), np.int64, 3 * len(keys))
    addresses = np.array([segment.address for segment in segments], np.uint64)
    done = np.empty(len(keys), np.uint8)
    seconds = functions.mclst_jpeg_decode(
        library, file, len(keys), _address(table), *level.addresses,
        header.begins, len(header.begins), header.full, len(header.full),
        width, height, wide, high, _address(addresses), _address(done),
    )  # fmt: skip
    if done.all():
        return list(segments), seconds
    return [segment if ok else None for segment, ok in zip(segments, done.tolist(), strict=True)], seconds


def take_spare(segments: dict[Key, Decoded], spare: list[Decoded]) -> None:
    """Move segments that nobody else refers to, neither cache nor thread, to `spare`.

    To free and to allocate their pages takes longer than all else between the calls.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return
    while segments:
        segment = segments.popitem()[1]
        # The local variable and the argument; of the pixels, the tuple and the argument.
        alone = sys.getrefcount(segment) == 2 and sys.getrefcount(segment.pixels) == 2
        if alone and (len(spare) + 1) * segment.pixels.nbytes <= SPARE_BYTES:
            spare.append(segment)


def _memory(shape: tuple[int, int, int], spare: list[Decoded]) -> Decoded:
    with suppress(IndexError):  # other threads take from it too
        segment = spare.pop()
        if segment.pixels.shape == shape:
            return segment
    pixels = np.empty(shape, np.uint8)
    return Decoded(pixels, _address(pixels))


def _address(array: Any) -> int:
    """Address of an array in C order that may be written; `array.ctypes` takes three times as long."""
    return addressof(c_char.from_buffer(array)) if array.size else 0


def cut_squares(
    squares: U8, corners: I64, level: tuple[int, int], segment: tuple[int, int],
    segments: Mapping[Key, Decoded],
) -> Sequence[int]:  # fmt: skip
    """Fill squares uint8 [n, side, side, 3] from decoded segments.

    corners: int64 [n, 2], px of the level, in C order. level, segment: width and height, px. Pixels outside
    the level stay. Returns the squares that lack a segment.
    """
    functions = compiled()
    assert functions is not None and squares.flags.c_contiguous and corners.flags.c_contiguous
    missing = np.empty(len(squares), np.uint8)
    keys = np.fromiter(chain.from_iterable(segments), np.int64, 3 * len(segments))
    addresses = np.array([item.address for item in segments.values()], np.uint64)
    functions.mclst_cut(
        len(squares), _address(corners), squares.shape[1], *level, *segment,
        len(segments), _address(keys), _address(addresses), _address(squares), _address(missing),
    )  # fmt: skip
    return missing.nonzero()[0].tolist() if missing.any() else ()
