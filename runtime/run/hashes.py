"""What a run is made of, as hashes and words: two runs with the same are the same run."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from mclst.runtime.errors import SlideError
from mclst.runtime.hashing import stamp

if TYPE_CHECKING:
    from mclst.sections.section import Spots

BLOCK_BYTES = 4 << 20
ROWS_AT_ONCE = 65_536


class SlideHash:
    """SHA-256 of a slide's file, in a thread beside the work; a context manager that does not wait for it.

    Of a MIRAX slide, whose pixels lie in a folder of the same stem, that folder's files are hashed after it; of a DICOM
    slide, whose levels are files of their own, all DICOM files of its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = stamp(path)
        self._stop = Event()
        self._found: Future[str] = Future()
        self._thread = Thread(target=self._run, name="mclst-hash", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether `result` comes at once."""
        return self._found.done()

    def result(self) -> str:
        """The hash, as hex; raises SlideError where the file cannot be read."""
        try:
            return self._found.result()
        except OSError as error:
            raise SlideError(f"{self.path} can no longer be read ({error.strerror or error})") from error

    def check_unchanged(self) -> None:
        """Raise SlideError where the file is not the one it was when this was made."""
        if stamp(self.path) != self._seen:
            raise SlideError(f"{self.path} changed while it was being read; run again once it is complete")

    def _run(self) -> None:
        try:
            digest = hashlib.sha256()
            for part in (self.path, *_parts(self.path)):
                with part.open("rb") as file:
                    while (block := file.read(BLOCK_BYTES)) and not self._stop.is_set():
                        digest.update(block)
            self._found.set_result(digest.hexdigest())
        except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the result
            self._found.set_exception(error)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()


def _parts(path: Path) -> list[Path]:
    """Other files that a slide consists of."""
    inside = path.with_suffix("")
    if (inside / "Slidedat.ini").is_file():
        return sorted(inside.glob("*.*"))
    if not _is_dicom(path):
        return []
    return [other for other in sorted(path.parent.iterdir()) if other != path and _is_dicom(other)]


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def spots_sha256(spots: Spots) -> str:
    """SHA-256 over all that a table of spots brings into a map: ids, places and the table's own columns."""
    import pandas as pd  # a server hashes bundles alone, and starts without what reads tables

    digest = hashlib.sha256()
    for values in (spots.xy_px, spots.array_xy):
        digest.update(b"-" if values is None else np.ascontiguousarray(values).view(np.uint8).data)
    digest.update(str(spots.id.dtype).encode())
    digest.update(np.ascontiguousarray(spots.id).view(np.uint8).data)
    digest.update(repr([str(name) for name in spots.table.columns]).encode())
    for start in range(0, len(spots) if len(spots.table.columns) else 0, ROWS_AT_ONCE):
        some = spots.table.iloc[start : start + ROWS_AT_ONCE].astype(str)
        digest.update(pd.util.hash_pandas_object(some, index=False).to_numpy().tobytes())
    return digest.hexdigest()
