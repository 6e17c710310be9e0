"""Hashes of a run's inputs."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from mclst.runtime.errors import SlideError
from mclst.runtime.storage.digest import slide_sha256, slide_stamp
from mclst.sections.location import local_path

if TYPE_CHECKING:
    from mclst.runtime.slide.base import Slide
    from mclst.runtime.storage.remote import RemoteObjects
    from mclst.sections.section import Spots

ROWS_AT_ONCE = 65_536


class RemoteIdentity:
    """Stands for the hash of a slide that is elsewhere, whose bytes are not all read."""

    ready = True
    sha256 = None

    def __init__(self, slide: RemoteObjects) -> None:
        self._slide = slide

    def result(self) -> str:
        """See `RemoteObjects.identity`."""
        return self._slide.identity()

    def check_unchanged(self) -> None:
        """Raise SlideError if its server says that it has changed."""
        self._slide.check_unchanged()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class SlideHash:
    """`slide_sha256` of a slide, computed in a thread while the `with` body runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = slide_stamp(path)
        self._stop = Event()
        self._future: Future[str] = Future()
        self._thread = Thread(target=self._run, name="mclst-hash", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether `result` returns at once."""
        return self._future.done()

    def result(self) -> str:
        """Wait for the hash, as hex; raise SlideError if the file cannot be read."""
        try:
            return self._future.result()
        except OSError as error:
            raise SlideError(f"{self.path} can no longer be read ({error.strerror or error})") from error

    @property
    def sha256(self) -> str | None:
        """The hash; see `result`."""
        return self.result()

    def check_unchanged(self) -> None:
        """Raise SlideError if the file has changed since this was created."""
        if slide_stamp(self.path) != self._stamp:
            raise SlideError(f"{self.path} changed while it was being read; run again once it is complete")

    def _run(self) -> None:
        try:
            self._future.set_result(slide_sha256(self.path, self._stop.is_set))
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            self._future.set_exception(error)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()


def identity_of(slide: Slide) -> SlideHash | RemoteIdentity:
    """Return what identifies a slide's content; a context manager."""
    if slide.remote is not None:
        return RemoteIdentity(slide.remote)
    path = local_path(slide.path)
    assert path is not None, "a slide that is not remote has a path"
    return SlideHash(path)


def spots_sha256(spots: Spots) -> str:
    """SHA-256 of what a table of spots contributes to a map: ids, positions and further columns."""
    digest = hashlib.sha256()
    for values in (spots.xy_px, spots.array_xy):
        digest.update(b"-" if values is None else np.ascontiguousarray(values).view(np.uint8).data)
    digest.update(str(spots.id.dtype).encode())
    digest.update(np.ascontiguousarray(spots.id).view(np.uint8).data)
    for name, column in spots.columns.items():
        digest.update(repr((name, str(column.dtype))).encode())
        if column.dtype.kind != "O":
            digest.update(np.ascontiguousarray(column).view(np.uint8).data)
            continue
        for start in range(0, len(column), ROWS_AT_ONCE):
            digest.update(repr(column[start : start + ROWS_AT_ONCE].tolist()).encode())
    return digest.hexdigest()
