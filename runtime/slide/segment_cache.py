"""Cache of decoded segments shared by threads: each is decoded once and evicted after its last use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.decoding.batch import Decoded, Key, decoded

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
        self._segments: OrderedDict[Hashable, Decoded] = OrderedDict()
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
                return cached.pixels
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
            segment = np.ascontiguousarray(decode())
            segment.flags.writeable = False
        except BaseException as exc:
            with self._lock:
                future = self._pending.pop(key)
            if future is not None:
                future.set_exception(exc)
            raise
        with self._lock:
            # Stored and no longer pending in one step, so that no other thread decodes it again.
            self._store(key, decoded(segment))
            self._count_use(key)
            future = self._pending.pop(key)
        if future is not None:
            future.set_result(segment)
        return segment

    def begin(
        self, keys: Sequence[Key], uses: Sequence[int]
    ) -> tuple[list[Decoded | None], list[int], dict[int, Future[NDArray[np.uint8]]], list[int]]:
        """Begin to get several segments, each for so many uses, in one step.

        Returns, by places in `keys`: those that are cached; places that the caller decodes now and passes to
        `finish` whatever happens; the futures of those that other threads decode, for `count_uses` once they
        are there; and places that this was the last use of.
        """
        cached: list[Decoded | None] = [None] * len(keys)
        mine: list[int] = []
        others: dict[int, Future[NDArray[np.uint8]]] = {}
        dropped: list[int] = []
        segments, pending, uses_left = self._segments, self._pending, self._uses_left
        with self._lock:
            for place, key in enumerate(keys):
                segment = segments.get(key)
                if segment is not None:
                    cached[place] = segment
                    left = uses_left.get(key, 0) - uses[place]
                    if left > 0:
                        uses_left[key] = left
                    elif key in uses_left:
                        del uses_left[key], segments[key]
                        self.held_bytes -= segment.pixels.nbytes
                        dropped.append(place)
                        continue
                    segments.move_to_end(key)
                elif key in pending:
                    others[place] = pending[key] = pending[key] or Future()
                else:
                    pending[key] = None
                    mine.append(place)
        return cached, mine, others, dropped

    def finish(
        self,
        keys: Sequence[Key],
        uses: Sequence[int],
        places: Sequence[int],
        segments: Sequence[Decoded | BaseException],
        dropped: list[int],
    ) -> None:
        """Store what `begin` left to the caller; threads that wait for a segment get it, or its exception.

        segments: one for each of `places`. Appends to `dropped` the places that this was the last use of.
        """
        waiting: list[tuple[Future[NDArray[np.uint8]], Decoded | BaseException]] = []
        uses_left, pending, held = self._uses_left, self._pending, self._segments
        with self._lock:
            for place, segment in zip(places, segments, strict=True):
                key = keys[place]
                future = pending.pop(key)
                if future is not None:
                    waiting.append((future, segment))
                if not isinstance(segment, Decoded):
                    continue
                self.decoded += 1
                left = uses_left.get(key, 0) - uses[place]
                if left > 0:
                    uses_left[key] = left
                elif key in uses_left:
                    del uses_left[key]
                    dropped.append(place)
                    continue
                held[key] = segment
                self.held_bytes += segment.pixels.nbytes
            self._evict()
        for future, segment in waiting:
            if isinstance(segment, Decoded):
                future.set_result(segment.pixels)
            else:
                future.set_exception(segment)

    def count_uses(self, keys: Sequence[Key], uses: Sequence[int], places: Iterable[int]) -> None:
        """Count uses of segments that other threads decoded."""
        with self._lock:
            for place in places:
                self._count_use(keys[place], uses[place])

    def _store(self, key: Hashable, segment: Decoded) -> None:
        self.decoded += 1
        self._segments[key] = segment
        self.held_bytes += segment.pixels.nbytes
        self._evict()

    def _evict(self) -> None:
        """Note the peak, and keep the limit."""
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        while self.held_bytes > self.limit and len(self._segments) > 1:
            self.held_bytes -= self._segments.popitem(last=False)[1].pixels.nbytes

    def _count_use(self, key: Hashable, count: int = 1) -> None:
        left = self._uses_left.get(key)
        if left is None:
            return
        if left > count:
            self._uses_left[key] = left - count
            return
        del self._uses_left[key]
        # May be gone already: the limit evicts regardless of uses left.
        if key in self._segments:
            self.held_bytes -= self._segments.pop(key).pixels.nbytes

    def __contains__(self, key: Hashable) -> bool:
        """Whether a segment is cached or being decoded."""
        with self._lock:
            return key in self._segments or key in self._pending

    def clear(self) -> None:
        """Evict all segments."""
        with self._lock:
            self._segments.clear()
            self.held_bytes = 0
