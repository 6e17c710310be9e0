"""A cache of features: what an encoder gave for the tiles of a slide.

A file is named by two hashes: of all that decides the values but the slide, and of the slide's content. So a
slide is hashed before it is encoded only where features of such a run are kept. A file ends in the SHA-256 of
all before it, which is checked before a value is used. What is not used for longest is removed first.

    MAGIC · blocks · attachment · JSON · its length (8 bytes, little-endian) · SHA-256
    block: rows int64 [b] · values float32 [b, D]

Others may delete any file at any time; a file is never changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.user_cache import UNFINISHED, cache_folder, open_own, write_own
from mclst.runtime.errors import InputError

MAGIC = b"mclst-features/2"
FOLDER, SUFFIX = "features", ".features"
VARIABLE, DEFAULT_GB = "MCLST_FEATURE_CACHE_GB", 4.0
LENGTH_BYTES, DIGEST_BYTES = 8, 32
BLOCK_BYTES = 4 << 20
MOST_TAIL_BYTES = 64 << 20


@dataclass(frozen=True)
class StoredFeatures:
    """Features in an open file of the cache.

    width: D. sizes: rows of each block. failed: {row: reason} of tiles without features. attachment: further
    bytes.
    """

    width: int
    sizes: tuple[int, ...]
    failed: Mapping[int, str]
    attachment: bytes
    _file: BinaryIO

    def __len__(self) -> int:
        return sum(self.sizes)

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield rows int64 [b] and values float32 [b, D] in the order in which they were added."""
        at = len(MAGIC)
        for size in self.sizes:
            bytes_of_rows = 8 * size
            content = _read_at(self._file, bytes_of_rows + 4 * size * self.width, at)
            at += len(content)
            values = np.frombuffer(content, "<f4", offset=bytes_of_rows).reshape(size, self.width)
            yield np.frombuffer(content, "<i8", size).astype(np.int64), values.astype(np.float32)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class FeatureCache:
    """Features that this user keeps between commands.

    Parameters
    ----------
    limit_bytes : int
        Most bytes of all files together; 0: nothing is kept or used.
    folder : Path, optional
        The user's by default.
    """

    def __init__(self, limit_bytes: int, folder: Path | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.folder = (cache_folder() if folder is None else folder) / FOLDER

    @classmethod
    def of_user(cls) -> Self:
        """The user's cache, of $MCLST_FEATURE_CACHE_GB; raises InputError if that is no number."""
        text = os.environ.get(VARIABLE) or str(DEFAULT_GB)
        try:
            size = float(text)
        except ValueError:
            size = -1.0
        if not (isfinite(size) and size >= 0):
            raise InputError(f"{VARIABLE} is {text!r}; give a number of GB, or 0 to keep no features")
        return cls(round(size * 1e9))

    def find(
        self, key: Mapping[str, Any], slide_sha256: Callable[[], str], rows: int
    ) -> StoredFeatures | None:
        """Open the features of `rows` tiles; close them after use.

        Parameters
        ----------
        key : mapping
            All that decides the values but the slide, as plain values.
        slide_sha256 : callable
            Gives the slide's hash; called only if features of this key are kept for any slide.
        rows : int
            Tiles, those without features included.

        Returns
        -------
        StoredFeatures or None
            None if there are none, or the file is damaged or may be another user's: then they are computed
            again.
        """
        beginning = f"{_digest(key)}-"
        if not any(path.name.startswith(beginning) and path.suffix == SUFFIX for path in self._paths()):
            return None
        path = self._path(key, slide_sha256())
        file = open_own(path)
        if file is None:
            return None
        stored = None
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            stored = _read(file, key, rows)
        if stored is None:
            file.close()
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)
        return stored

    def writer(self, key: Mapping[str, Any], rows: int) -> FeatureWriter:
        """Return a writer of the features of at most `rows` tiles."""
        return FeatureWriter(self, key, rows)

    def make_room(self, needed: int) -> bool:
        """Remove what was not used for longest until `needed` bytes fit; False if they cannot."""
        if needed > self.limit_bytes:
            return False
        with suppress(OSError):
            if needed > shutil.disk_usage(self.folder).free / 2:
                return False
        kept = []
        for path in self._paths():
            with suppress(OSError):  # removed meanwhile
                status = path.stat()
                if path.suffix in (SUFFIX, ".npz"):  # .npz: of earlier versions
                    kept.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total + needed <= self.limit_bytes:
                break
            with suppress(OSError):
                path.unlink(missing_ok=True)
                total -= size
        return total + needed <= self.limit_bytes

    def _paths(self) -> list[Path]:
        """What is in the folder; nothing if it cannot be read, or nothing may be kept."""
        with suppress(OSError):
            return [self.folder / name for name in os.listdir(self.folder)] if self.limit_bytes else []
        return []

    def _path(self, key: Mapping[str, Any], slide_sha256: str) -> Path:
        return self.folder / f"{_digest(key)}-{slide_sha256}{SUFFIX}"


class FeatureWriter:
    """Writes a slide's features while they are computed; use as a context, and `finish`.

    Whatever the file system refuses ends the writing, not the run: `trouble` says why. Without `finish`
    nothing is kept.
    """

    def __init__(self, cache: FeatureCache, key: Mapping[str, Any], rows: int) -> None:
        self.trouble = ""
        self._cache, self._key, self._most_rows = cache, key, rows
        self._stack = ExitStack()
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._sizes: list[int] = []
        self._width = 0
        self._ended = not cache.limit_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def add(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Append rows [b] and values [b, D]."""
        if self._ended:
            return
        try:
            if self._file is None:
                self._width = values.shape[1]
                if not self._cache.make_room(self._most_rows * (8 + 4 * self._width)):
                    self.abandon("they are larger than the cache or half of the free disk")
                    return
                # Renamed to its final name once that is known.
                draft = self._cache.folder / f"{UNFINISHED}{os.getpid()}-{id(self)}"
                self._file = self._stack.enter_context(write_own(draft))
                self._draft = draft
                self._put(MAGIC)
            self._put(np.ascontiguousarray(rows, "<i8").tobytes())
            self._put(np.ascontiguousarray(values, "<f4").tobytes())
            self._sizes.append(len(rows))
        except OSError as error:
            self.abandon(error.strerror or str(error))

    def abandon(self, trouble: str = "") -> None:
        """Keep nothing."""
        self.trouble = self.trouble or trouble
        if self._file is not None:
            # Raised into `write_own`, which removes the file.
            self._stack.__exit__(_Abandoned, _Abandoned(), None)
            self._file = None
        self._ended = True

    def finish(
        self, slide_sha256: str, *, failed: Mapping[int, str] | None = None, attachment: bytes = b""
    ) -> bool:
        """Give the file its name; False if nothing is kept.

        Parameters
        ----------
        slide_sha256 : str
            Of the slide that was encoded.
        failed : mapping, optional
            {row: reason} of tiles without features.
        attachment : bytes
            To keep with them.
        """
        if self._ended or self._file is None:
            return False
        tail = json.dumps(
            {
                "key": _plain(self._key),
                "width": self._width,
                "sizes": self._sizes,
                "failed": [[row, reason] for row, reason in (failed or {}).items()],
                "attachment": len(attachment),
            }
        ).encode()
        path = self._cache._path(self._key, slide_sha256)
        try:
            self._put(attachment)
            self._put(tail)
            self._put(len(tail).to_bytes(LENGTH_BYTES, "little"))
            self._file.write(self._hash.digest())
            self._stack.close()
            os.replace(self._draft, path)
        except OSError as error:
            self.trouble = error.strerror or str(error)
            with suppress(OSError):
                self._draft.unlink(missing_ok=True)
        self._file, self._ended = None, True
        return not self.trouble

    def _put(self, content: bytes) -> None:
        assert self._file is not None, "opened by add"
        self._file.write(content)
        self._hash.update(content)


class _Abandoned(Exception):
    """Nothing is kept."""


def _read_at(file: BinaryIO, size: int, at: int) -> bytes:
    """Read from a position; in parts, since one call reads 2 GB at most. Raises OSError if the file ends."""
    parts = []
    while size:
        part = os.pread(file.fileno(), min(size, 1 << 30), at)
        if not part:
            raise OSError("the file ends early")
        parts.append(part)
        at, size = at + len(part), size - len(part)
    return b"".join(parts)


def _plain(key: Mapping[str, Any]) -> Any:
    """The key as JSON gives it back."""
    return json.loads(json.dumps(key, sort_keys=True))


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(MAGIC + json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _read(file: BinaryIO, key: Mapping[str, Any], rows: int) -> StoredFeatures:
    """Read all but the values, after checking every byte; raises ValueError, KeyError or TypeError."""
    size = os.fstat(file.fileno()).st_size
    end = size - DIGEST_BYTES
    if end < len(MAGIC) + LENGTH_BYTES:
        raise ValueError("cut off")
    digest, left = hashlib.sha256(), end
    while left:
        block = file.read(min(BLOCK_BYTES, left))
        if not block:
            raise ValueError("cut off")
        digest.update(block)
        left -= len(block)
    if file.read(DIGEST_BYTES) != digest.digest():
        raise ValueError("damaged")
    if _read_at(file, len(MAGIC), 0) != MAGIC:
        raise ValueError("another format")
    length = int.from_bytes(_read_at(file, LENGTH_BYTES, end - LENGTH_BYTES), "little")
    if not 0 < length <= min(MOST_TAIL_BYTES, end):
        raise ValueError("damaged")
    at = end - LENGTH_BYTES - length
    tail = json.loads(_read_at(file, length, at))
    width, sizes, attached = int(tail["width"]), tuple(map(int, tail["sizes"])), int(tail["attachment"])
    failed = {int(row): str(reason) for row, reason in tail["failed"]}
    values = sum(sizes) * (8 + 4 * width)
    if tail["key"] != _plain(key) or len(MAGIC) + values + attached != at or sum(sizes) + len(failed) != rows:
        raise ValueError("of other tiles")
    return StoredFeatures(width, sizes, failed, _read_at(file, attached, at - attached), file)
