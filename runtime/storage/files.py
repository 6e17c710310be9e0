"""Files and folders of this machine, read at offsets by many threads."""

from __future__ import annotations

import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import SlideError


class ByteSource:
    """What slides are decoded from, by many threads.

    Attributes
    ----------
    seconds : float
        Time that all threads spent reading so far.
    reads_ahead : bool
        Whether `expect` and `prefetch` make later reads faster.
    """

    reads_ahead = False

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = Lock()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds += time.perf_counter() - start

    def close(self) -> None:
        """Release what does not end with the last reference."""


class ByteFile(ByteSource, ABC):
    """A file that is read at offsets; size: bytes."""

    size: int

    def read(self, offset: int, count: int) -> bytes:
        """Read `count` bytes from `offset`, fewer only at the end of the file; raises OSError."""
        with self._timed():
            return self._read(offset, count)

    def read_all(self) -> bytes:
        """Read the whole file."""
        return self.read(0, self.size)

    @abstractmethod
    def _read(self, offset: int, count: int) -> bytes: ...

    def expect(self, ranges: NDArray[np.int64]) -> None:
        """Announce ranges [n, 2] (offset, count) that will be read."""

    def prefetch(self, ranges: NDArray[np.int64]) -> None:
        """Read ranges [n, 2] (offset, count) together, before each is asked for."""


class SharedFile(ByteFile):
    """A local file; its descriptor closes with the last reference to the object."""

    def __init__(self, path: Path) -> None:
        self._fd = -1  # for __del__, if opening fails
        super().__init__()
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    @property
    def descriptor(self) -> int:
        """For code that reads the file itself, and tells how long by `add_seconds`."""
        return self._fd

    def add_seconds(self, seconds: float) -> None:
        """Add to the time spent reading."""
        with self._lock:
            self.seconds += seconds

    def _read(self, offset: int, count: int) -> bytes:
        return _read_all(self._fd, offset, count)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class Part(NamedTuple):
    """`length` bytes of a folder's file from `offset`; None: the whole, of at most `limit` bytes."""

    name: str
    offset: int
    length: int | None
    limit: int


class ByteFolder(ByteSource, ABC):
    """A folder whose files are read whole or in part, by names that use `/`."""

    def read(self, name: str, limit: int) -> bytes | None:
        """Read a whole file; None if there is none. Raises OSError, or ValueError beyond `limit` bytes."""
        with self._timed():
            return self._read(name, 0, None, limit)

    def read_range(self, name: str, offset: int, count: int) -> bytes | None:
        """Read `count` bytes from `offset`, or the last ones if it is negative; fewer at the file's end.

        None if there is no such file; raises OSError.
        """
        with self._timed():
            return self._read(name, offset, count, count)

    @abstractmethod
    def _read(self, name: str, offset: int, count: int | None, limit: int) -> bytes | None: ...

    def prefetch(self, parts: Sequence[Part]) -> None:
        """Begin to read parts that are read next, each once."""

    def __contains__(self, name: str) -> bool:
        return self.read_range(name, 0, 1) is not None


class LocalFolder(ByteFolder):
    """A folder of this machine; what links lead out of it is refused."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._root = os.path.realpath(path)
        self._inside: set[str] = set()

    def _read(self, name: str, offset: int, count: int | None, limit: int) -> bytes | None:
        path = os.path.join(self._root, name)
        try:
            self._check_inside(os.path.dirname(path), name)
            # Neither is a link followed, nor does a pipe block.
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if os.path.islink(path):
                raise self._refused(name, "is a link") from error
            raise
        try:
            status = os.fstat(handle)
            if stat.S_ISDIR(status.st_mode):
                return None
            if not stat.S_ISREG(status.st_mode):
                raise self._refused(name, "is no regular file")
            if count is None and status.st_size > limit:
                raise ValueError(f"{name} has {status.st_size:,} bytes, more than the {limit:,} it may have")
            start = max(0, status.st_size + offset) if offset < 0 else offset
            return _read_all(handle, start, status.st_size if count is None else count)
        finally:
            os.close(handle)

    def _check_inside(self, folder: str, name: str) -> None:
        if folder in self._inside:
            return
        real = os.path.realpath(folder)
        if real != self._root and not real.startswith(self._root + os.sep):
            raise self._refused(name, "leads out of the folder")
        self._inside.add(folder)

    def _refused(self, name: str, why: str) -> SlideError:
        return SlideError(f"{self.path}: {name} {why}; copy the whole folder again")


def _read_all(handle: int, offset: int, count: int) -> bytes:
    data = os.pread(handle, count, offset)
    while len(data) < count and (part := os.pread(handle, count - len(data), offset + len(data))):
        data += part
    return data
