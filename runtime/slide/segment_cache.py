"""Cache of decoded segments shared by threads: each is decoded once and evicted after its last use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock

import numpy as np
from numpy.typing import NDArray

CACHE_BYTES = 256 << 20


class SegmentCache:
    """LRU cache of up to `limit` bytes; a segment larger than that is held alone.

    decoded: segments decoded so far. held_bytes: size of the cached segments; peak_bytes: its maximum so far.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.decoded = 0
        self.peak_bytes = 0
        self._uses_left: dict[Hashable, int] = {}
        self._segments: OrderedDict[Hashable, NDArray[np.uint8]] = OrderedDict()
        self.held_bytes = 0
        # Segments being decoded. The first thread that waits creates the future: most segments are never
        # waited for.
        self._pending: dict[Hashable, Future[NDArray[np.uint8]] | None] = {}
        self._lock = Lock()

    def expect(self, uses: dict[Hashable, int]) -> None:
        """Set how often each segment will be used, after which it is evicted; others stay until the limit."""
        with self._lock:
            self._uses_left = uses

    def get(self, key: Hashable, decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Get a segment, read-only; if it is not cached, one thread decodes it and the others wait.

        All waiting threads get the exception that `decode` raises; a failure is not cached.
        """
        future: Future[NDArray[np.uint8]] | None = None
        with self._lock:
            cached = self._segments.get(key)
            if cached is not None:
                self._segments.move_to_end(key)
                self._count_use(key)
                return cached
            if key in self._pending:
                future = self._pending[key] = self._pending[key] or Future()
            else:
                self._pending[key] = None
        # From here on without the lock: waiting and decoding take long.
        if future is not None:
            shared = future.result()
            with self._lock:
                self._count_use(key)
            return shared
        try:
            segment = decode()
            segment.flags.writeable = False
        except BaseException as exc:
            with self._lock:
                future = self._pending.pop(key)
            if future is not None:
                future.set_exception(exc)
            raise
        with self._lock:
            # Stored and no longer pending in one step, so that no other thread decodes it again.
            self._store(key, segment)
            self._count_use(key)
            future = self._pending.pop(key)
        if future is not None:
            future.set_result(segment)
        return segment

    def _store(self, key: Hashable, segment: NDArray[np.uint8]) -> None:
        self.decoded += 1
        self._segments[key] = segment
        self.held_bytes += segment.nbytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        while self.held_bytes > self.limit and len(self._segments) > 1:
            self.held_bytes -= self._segments.popitem(last=False)[1].nbytes

    def _count_use(self, key: Hashable) -> None:
        left = self._uses_left.get(key)
        if left is None:
            return
        if left > 1:
            self._uses_left[key] = left - 1
            return
        del self._uses_left[key]
        # May be gone already: the limit evicts regardless of uses left.
        if key in self._segments:
            self.held_bytes -= self._segments.pop(key).nbytes

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._segments

    def clear(self) -> None:
        """Evict all segments."""
        with self._lock:
            self._segments.clear()
            self.held_bytes = 0
