"""Many JPEG segments of a file, and many squares from decoded segments, each in one call outside the GIL.

Between the calls, Python's share per tile is a few microseconds: tables are arrays, and addresses are kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from ctypes import addressof, c_char
from functools import cache
from sys import getrefcount
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.decoding.library import compiled, libjpeg

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
SPARE_BYTES = 16 << 20
PROBES = 64
"""Calls until Python has specialized what it runs often."""
Key = int
"""A segment: its number within its level, row by row, plus 2⁴⁰ times the level."""
LEVEL_KEYS = 1 << 40


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
    columns = -(-width // wide)
    last_column, last_row = columns - 1, (height - 1) // high
    full, segments = (high, wide, 3), []
    for key in keys:
        row, column = divmod(key % LEVEL_KEYS, columns)
        if column < last_column and row < last_row:
            segments.append(_memory(full, spare))
        else:
            shape = (min(high, height - row * high), min(wide, width - column * wide), 3)
            segments.append(_memory(shape, spare))
    table = np.array(keys, np.int64)
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


def take_spare(segments: list[Decoded | None], places: list[int], spare: list[Decoded]) -> None:
    """Move those of `segments` that the cache gave up, and no other thread refers to, to `spare`.

    To free and to allocate their pages takes longer than all else between the calls.
    """
    if not _counts_holders():
        return
    for place in places:
        alone = segments[place] is not None and _is_held_once(segments, place)
        segment, segments[place] = segments[place], None
        if alone and segment is not None:
            if (len(spare) + 1) * segment.pixels.nbytes > SPARE_BYTES:
                return
            spare.append(segment)


def _is_held_once(segments: list[Any], place: int) -> bool:
    """Whether only the list refers to a segment, and only the segment to its pixels.

    Two: the holder and the argument, which is read from a list or a tuple and so counted. Of a local variable
    Python counts no argument from 3.14 on.
    """
    return getrefcount(segments[place]) == 2 and getrefcount(segments[place].pixels) == 2


@cache
def _counts_holders() -> bool:
    """Whether `_is_held_once` tells the truth on this Python, cold and warm; without the GIL it does not."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    segments = [decoded(np.zeros((1, 1, 3), np.uint8)) for _ in range(3)]
    others = [segments[1], segments[2].pixels]
    tried = {tuple(_is_held_once(segments, place) for place in range(3)) for _ in range(PROBES)}
    return tried == {(True, False, False)} and len(others) == 2


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


def needed_segments(
    squares: U8, corners: I64, level: tuple[int, int], segment: tuple[int, int], number: int, pad: bytes
) -> tuple[I64, I64]:
    """Keys of the segments under squares uint8 [n, side, side, 3], ascending, and how many squares need each.

    corners: int64 [n, 2], px of the level, in C order. level, segment: width and height, px. number: of the
    level. Squares that reach beyond the level are filled with `pad`, three bytes.
    """
    functions = compiled()
    assert functions is not None and squares.flags.c_contiguous and corners.flags.c_contiguous
    n, side = squares.shape[:2]
    most = n * ((side - 2) // segment[0] + 2) * ((side - 2) // segment[1] + 2)
    table = np.empty((2, most), np.int64)
    keys, uses = table
    count = functions.mclst_needed(
        n, _address(corners), side, *level, *segment, number * LEVEL_KEYS, pad,
        _address(squares), _address(keys), _address(uses),
    )  # fmt: skip
    if count < 0:
        raise MemoryError
    return keys[:count], uses[:count]


def cut_squares(
    squares: U8, corners: I64, level: tuple[int, int], segment: tuple[int, int], keys: I64,
    segments: Sequence[Decoded | None],
) -> Sequence[int]:  # fmt: skip
    """Fill squares uint8 [n, side, side, 3] from the segments that `needed_segments` names.

    Pixels outside the level stay. Returns the squares that lack a segment.
    """
    functions = compiled()
    assert functions is not None
    addresses = np.array([item.address if item else 0 for item in segments], np.uint64)
    missing = np.empty(len(squares), np.uint8)
    lacking = functions.mclst_cut(
        len(squares), _address(corners), squares.shape[1], *level, *segment,
        len(segments), _address(keys), _address(addresses), _address(squares), _address(missing),
    )  # fmt: skip
    return missing.nonzero()[0].tolist() if lacking else ()
