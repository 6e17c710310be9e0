"""Decoded segments, kept a while and shared between threads, each decoded once however many ask."""

from __future__ import annotations

import os
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
        self._held: OrderedDict[Hashable, NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0
        self._under_way: dict[Hashable, Future[NDArray[np.uint8]]] = {}
        self._lock = Lock()

    def get(self, key: Hashable, decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Give the segment `key`, read-only; where it is not held, one thread decodes and the others wait.

        What `decode` raises goes to everyone who waits; a failure is not remembered.
        """
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            future = self._under_way.get(key)
            mine = future is None
            if future is None:
                future = self._under_way[key] = Future()
        if not mine:
            return future.result()
        try:
            segment = decode()
            segment.flags.writeable = False
        except BaseException as exc:
            with self._lock:
                del self._under_way[key]
            future.set_exception(exc)
            raise
        with self._lock:
            self._keep(key, segment)
            del self._under_way[key]
        future.set_result(segment)
        return segment

    def _keep(self, key: Hashable, segment: NDArray[np.uint8]) -> None:
        self.decoded += 1
        self._held[key] = segment
        self._bytes += segment.nbytes
        while self._bytes > self.limit and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forget every held segment."""
        with self._lock:
            self._held.clear()
            self._bytes = 0


class SharedFile:
    """A file read at offsets by many threads; its descriptor closes when the last of them lets go."""

    def __init__(self, path: Path) -> None:
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, count: int) -> bytes:
        """Read `count` bytes from `offset`; fewer where the file ends before."""
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
