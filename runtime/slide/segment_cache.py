"""Decoded segments, shared between threads: each decoded once, and let go when no tile to come needs it.

Letting go at once is not for the sake of memory alone: what is freed is used again for the next segment, while it is
still in the processor's cache.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

CACHE_BYTES = 256 << 20


class SegmentCache:
    """The segments used last, up to `limit` bytes; one larger than that is kept alone."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.decoded = 0
        self.most_bytes = 0
        self._wanted: dict[Hashable, int] = {}
        self._held: OrderedDict[Hashable, NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0
        # What others wait on is made by the first of them: most segments are decoded unasked.
        self._under_way: dict[Hashable, Future[NDArray[np.uint8]] | None] = {}
        self._lock = Lock()

    def expect(self, wanted: dict[Hashable, int]) -> None:
        """Say how often each segment will be asked for from now on; after that many times it is let go.

        One that is not among them stays until the limit pushes it out.
        """
        with self._lock:
            self._wanted = wanted

    def get(self, key: Hashable, decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Give the segment `key`, read-only; where it is not held, one thread decodes and the others wait.

        What `decode` raises goes to everyone who waits; a failure is not remembered.
        """
        waiting: Future[NDArray[np.uint8]] | None = None
        with self._lock:
            held = self._held.get(key)
            if held is not None:
                self._held.move_to_end(key)
                self._use(key)
                return held
            if key in self._under_way:
                waiting = self._under_way[key] = self._under_way[key] or Future()
            else:
                self._under_way[key] = None
        if waiting is not None:
            shared = waiting.result()
            with self._lock:
                self._use(key)
            return shared
        try:
            segment = decode()
            segment.flags.writeable = False
        except BaseException as exc:
            with self._lock:
                waiting = self._under_way.pop(key)
            if waiting is not None:
                waiting.set_exception(exc)
            raise
        with self._lock:
            self._keep(key, segment)
            self._use(key)
            waiting = self._under_way.pop(key)
        if waiting is not None:
            waiting.set_result(segment)
        return segment

    def _keep(self, key: Hashable, segment: NDArray[np.uint8]) -> None:
        self.decoded += 1
        self._held[key] = segment
        self._bytes += segment.nbytes
        self.most_bytes = max(self.most_bytes, self._bytes)
        while self._bytes > self.limit and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes

    def _use(self, key: Hashable) -> None:
        left = self._wanted.get(key)
        if left is None:
            return
        if left > 1:
            self._wanted[key] = left - 1
            return
        del self._wanted[key]
        if key in self._held:
            self._bytes -= self._held.pop(key).nbytes

    def clear(self) -> None:
        """Forget every held segment."""
        with self._lock:
            self._held.clear()
            self._bytes = 0


class SharedFile:
    """A file read at offsets by many threads; its descriptor closes when the last of them lets go.

    seconds: busy seconds of all of them reading so far.
    """

    def __init__(self, path: Path) -> None:
        self._fd = -1
        self.seconds = 0.0
        self._lock = Lock()
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, count: int) -> bytes:
        """Read `count` bytes from `offset`; fewer where the file ends before."""
        start = time.perf_counter()
        try:
            return self._read(offset, count)
        finally:
            with self._lock:
                self.seconds += time.perf_counter() - start

    def _read(self, offset: int, count: int) -> bytes:
        data = os.pread(self._fd, count, offset)
        if len(data) == count or not data:
            return data
        parts = [data]
        while count > sum(map(len, parts)) and parts[-1]:
            done = sum(map(len, parts))
            parts.append(os.pread(self._fd, count - done, offset + done))
        return b"".join(parts)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
