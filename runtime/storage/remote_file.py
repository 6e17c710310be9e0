"""A remote file by ranges, and a remote folder: what local ones are to the readers of slides."""

from __future__ import annotations

import io
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import ResourceError, SlideError
from mclst.runtime.storage.files import ByteFile, ByteFolder, Part
from mclst.runtime.storage.remote import Answer, RemoteObjects, Server, Span
from mclst.sections.location import RemoteLocation

HEAD_BYTES = 1 << 14
HELD_BYTES = 128 << 20
"""Most bytes of ranges that are held."""
RANGE_BYTES = 1 << 20
"""Neighboring segments are asked for together up to this."""
WASTE = 1 / 8
"""Most bytes between them, as a share of theirs."""
AHEAD, AHEAD_BYTES = 16, 8 << 20
"""Most ranges, and bytes, that are asked for beyond what is needed now."""
HEADER_BLOCK = 1 << 13
METADATA_NAMES = ("zarr.json", ".zattrs", ".zgroup", ".zarray")

Range = tuple[int, int]
"""(first byte, end)."""


def join_ranges(ranges: Iterable[Range]) -> list[Range]:
    """Join sorted ranges that are near each other: up to RANGE_BYTES, and up to WASTE between them."""
    joined: list[Range] = []
    wanted = 0
    for start, end in ranges:
        if joined:
            first, last = joined[-1]
            both = max(last, end) - first
            new = max(0, end - max(start, last))
            if both <= RANGE_BYTES and both <= (1 + WASTE) * (wanted + new):
                joined[-1] = (first, max(last, end))
                wanted += new
                continue
        joined.append((start, end))
        wanted = end - start
    return joined


class RemoteFile(ByteFile):
    """An object read in ranges: those announced together are joined, asked for ahead, and held for a while.

    head: its first bytes.
    """

    reads_ahead = True

    def __init__(self, objects: RemoteObjects) -> None:
        super().__init__()
        self.objects = objects
        self._held: OrderedDict[Range, bytes] = OrderedDict()
        self._held_bytes = 0
        self._pending: dict[Range, Future[Answer | None]] = {}
        # What is held or pending; what is planned; what of that was never asked for.
        self._known, self._plan = _Pieces(), _Pieces()
        self._planned: set[Range] = set()
        self._ranges = RLock()  # a finished future calls back at once
        head = objects.read("", Span(0, HEAD_BYTES), HEAD_BYTES, identity=True)
        if head is None:
            raise SlideError(f"{objects.location} does not exist; check the address")
        if not head:
            raise SlideError(f"{objects.location} is empty (0 bytes); upload it again")
        self.head, self.size = head, objects.version("").size
        self._hold((0, len(head)), head)

    def read_all(self) -> bytes:
        """Read the whole file, in ranges asked for ahead."""
        starts = np.arange(0, self.size, RANGE_BYTES)
        ranges = np.stack([starts, np.minimum(RANGE_BYTES, self.size - starts)], axis=1)
        self.expect(ranges)
        return b"".join(self.read(first, count) for first, count in ranges.tolist())

    def expect(self, ranges: NDArray[np.int64]) -> None:
        """Announce ranges [n, 2] (offset, count) that will be read, so that they are joined."""
        plan = join_ranges(_sorted(ranges))
        with self._ranges:
            self._plan, self._planned = _Pieces(plan), set(plan)

    def prefetch(self, ranges: NDArray[np.int64]) -> None:
        """Ask for ranges [n, 2] (offset, count) at once and wait for them."""
        with self._ranges:
            missing = [wanted for wanted in _sorted(ranges) if self._known.covering(wanted) is None]
            planned = {piece for wanted in missing if (piece := self._plan.covering(wanted))}
            others = [wanted for wanted in missing if self._plan.covering(wanted) is None]
            futures = [self._ask(piece) for piece in (*sorted(planned), *join_ranges(others))]
        for future in futures:
            self.objects.wait(future)

    def _read(self, offset: int, count: int) -> bytes:
        wanted = offset, min(offset + count, self.size)
        if wanted[0] >= wanted[1]:
            return b""
        with self._ranges:
            piece = self._known.covering(wanted) or self._plan.covering(wanted) or wanted
            data = self._held.get(piece)
            if data is None:
                future = self._ask(piece)
            else:
                self._held.move_to_end(piece)
        if data is None:
            answer = self.objects.wait(future)
            data = b"" if answer is None else answer.data
        part = data[offset - piece[0] : wanted[1] - piece[0]]
        self.objects.record("", offset, part)
        return part

    def _ask(self, piece: Range) -> Future[Answer | None]:
        """Ask for a piece, unless that was done, and for the planned ones that follow it."""
        pending = self._pending.get(piece) or self._begin(piece)
        if piece in self._planned:
            self._planned.discard(piece)
            size = sum(end - first for first, end in self._pending)
            for following in self._plan.after(piece, AHEAD):
                if following in self._planned and len(self._pending) <= AHEAD and size < AHEAD_BYTES:
                    self._planned.discard(following)
                    self._begin(following)
                    size += following[1] - following[0]
        return pending

    def _begin(self, piece: Range) -> Future[Answer | None]:
        size = piece[1] - piece[0]
        future = self.objects.begin("", Span(piece[0], size), size)
        self._pending[piece] = future
        self._known.add(piece)
        future.add_done_callback(partial(self._arrived, piece))
        return future

    def _arrived(self, piece: Range, future: Future[Answer | None]) -> None:
        with self._ranges:
            self._pending.pop(piece, None)
            answer = None if future.cancelled() or future.exception() else future.result()
            if answer is None:
                self._known.remove(piece)
            else:
                self._hold(piece, answer.data, known=True)

    def _hold(self, piece: Range, data: bytes, *, known: bool = False) -> None:
        if not known:
            self._known.add(piece)
        self._held[piece] = data
        self._held_bytes += len(data)
        while self._held_bytes > HELD_BYTES and len(self._held) > 1:
            gone, old = self._held.popitem(last=False)
            self._held_bytes -= len(old)
            self._known.remove(gone)

    def close(self) -> None:
        """End reads under way, and close the connection."""
        self.objects.close()
        with self._ranges:
            self._held.clear()


def _sorted(ranges: NDArray[np.int64]) -> list[Range]:
    """(offset, count) [n, 2] → sorted (first, end) without empty ones."""
    return sorted({(first, first + count) for first, count in ranges.tolist() if count > 0 and first >= 0})


class _Pieces:
    """Ranges that may overlap, sorted by their first byte."""

    def __init__(self, pieces: Sequence[Range] = ()) -> None:
        self._sorted = list(pieces)
        self._longest = max((end - first for first, end in pieces), default=0)

    def add(self, piece: Range) -> None:
        insort(self._sorted, piece)
        self._longest = max(self._longest, piece[1] - piece[0])

    def remove(self, piece: Range) -> None:
        self._sorted.remove(piece)

    def after(self, piece: Range, count: int) -> list[Range]:
        place = bisect_right(self._sorted, piece)
        return self._sorted[place : place + count]

    def covering(self, wanted: Range) -> Range | None:
        """A piece that holds a range: of several the one that begins last."""
        place = bisect_right(self._sorted, (wanted[0], 1 << 62)) - 1
        while place >= 0 and self._sorted[place][0] + self._longest >= wanted[1]:
            if self._sorted[place][1] >= wanted[1]:
                return self._sorted[place]
            place -= 1
        return None


class HeaderReader(io.RawIOBase):
    """A seekable view of a remote file for its directories: fetches small blocks, each once."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._at = 0
        self._blocks: dict[int, bytes] = {}

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether it has a position."""
        return True

    def tell(self) -> int:
        """Position."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position."""
        self._at = max(0, offset + {0: 0, 1: self._at, 2: self._file.size}[whence])
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, all of the rest if negative."""
        end = self._file.size if size < 0 else min(self._at + size, self._file.size)
        if self._at >= end:
            return b""
        first, last = self._at // HEADER_BLOCK, (end - 1) // HEADER_BLOCK
        numbers = [number for number in range(first, last + 1) if number not in self._blocks]
        for start, stop in _runs(numbers):
            data = self._file.read(start * HEADER_BLOCK, (stop - start) * HEADER_BLOCK)
            for number in range(start, stop):
                at = (number - start) * HEADER_BLOCK
                self._blocks[number] = data[at : at + HEADER_BLOCK]
        data = b"".join(self._blocks[number] for number in range(first, last + 1))
        part = data[self._at - first * HEADER_BLOCK : end - first * HEADER_BLOCK]
        self._at += len(part)
        return part

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, such as an array; return the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


def _runs(numbers: list[int]) -> list[Range]:
    """Ascending numbers → runs (first, end)."""
    runs: list[Range] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


class RemoteFolder(ByteFolder):
    """Objects below an address."""

    reads_ahead = True

    def __init__(self, objects: RemoteObjects) -> None:
        super().__init__()
        self.objects = objects
        self._ahead: dict[Part, Future[Answer | None]] = {}

    def prefetch(self, parts: Sequence[Part]) -> None:
        """Begin to read parts that are read next, each once."""
        with self._lock:
            for part in parts:
                if part not in self._ahead:
                    self._ahead[part] = self.objects.begin(part.name, _span(part), part.limit)

    def _read(self, name: str, offset: int, count: int | None, limit: int) -> bytes | None:
        part = Part(name, offset, count, limit)
        with self._lock:
            future = self._ahead.pop(part, None)
        if future is None:
            identity = count is None and name.rpartition("/")[2] in METADATA_NAMES
            return self.objects.read(name, _span(part), limit, identity=identity)
        return self.objects.take(name, _span(part), self.objects.wait(future))

    def close(self) -> None:
        """End reads under way, and close the connection."""
        self.objects.close()
        self._ahead.clear()


def _span(part: Part) -> Span | None:
    return None if part.length is None else Span(part.offset, part.length)


def open_remote(location: RemoteLocation) -> RemoteFile | RemoteFolder:
    """Open an object or a folder; raises SlideError or ResourceError."""
    objects = RemoteObjects(location, _open_server(location))
    try:
        return RemoteFolder(objects) if location.is_folder else RemoteFile(objects)
    except BaseException:
        objects.close()
        raise


def _open_server(location: RemoteLocation) -> Server:
    """Open the connection that a location's scheme needs; ResourceError if a package is missing."""
    try:
        if location.scheme in ("http", "https"):
            from mclst.runtime.storage.http import HttpServer

            return HttpServer(location)
        from mclst.runtime.storage.buckets import open_bucket

        return open_bucket(location)
    except ImportError as error:
        raise ResourceError(
            f"{location} needs {error.name or 'fsspec'}, which is not installed; pip install 'mclst[remote]'"
        ) from error
