"""What identifies a slide of this machine: the SHA-256 of its files, and their stamps."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mclst.runtime.hashing import Stamp, stamp

BLOCK_BYTES = 4 << 20


def slide_sha256(path: Path, stopped: Callable[[], bool] = lambda: False) -> str:
    """SHA-256 of a slide's files, as hex; raises OSError.

    A MIRAX slide includes the folder of the same stem, which holds its pixels; a DICOM slide all DICOM files
    of its folder, which hold its levels. Of a slide that is a folder, names count as well, and no link is
    followed.

    stopped: asked for every block; the hash is then of no use.
    """
    digest, is_folder = hashlib.sha256(), os.path.isdir(path)
    for part in _files_below(path) if is_folder else (path, *_parts(path)):
        if is_folder:
            status = os.lstat(part)
            target = os.readlink(part) if stat.S_ISLNK(status.st_mode) else ""
            digest.update(
                f"{part.relative_to(path)}\0{status.st_size}\0{target}\0".encode(errors="surrogateescape")
            )
            if not stat.S_ISREG(status.st_mode):  # a pipe would block
                continue
        with part.open("rb") as file:
            while (block := file.read(BLOCK_BYTES)) and not stopped():
                digest.update(block)
    return digest.hexdigest()


def slide_stamp(path: Path) -> Stamp:
    """Stamp of a slide's file; of several files (their number, 0, bytes, latest modification).

    Those of `slide_sha256`.
    """
    is_folder = os.path.isdir(path)
    parts: list[Path] = []
    with suppress(OSError):  # reading it says so
        parts = _files_below(path) if is_folder else _parts(path)
    if not is_folder and not parts:
        return stamp(path)
    number = size = latest = 0
    for part in parts if is_folder else (path, *parts):
        with suppress(OSError):
            status = os.lstat(part)
            number, size, latest = number + 1, size + status.st_size, max(latest, status.st_mtime_ns)
    return number, 0, size, latest


def _files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted; folders that are links are not followed."""
    return sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names)


def _parts(path: Path) -> list[Path]:
    """The other files of a slide."""
    folder = path.with_suffix("")
    if os.path.isfile(folder / "Slidedat.ini"):
        return sorted(folder.glob("*.*"))
    if not _is_dicom(path):
        return []
    return [other for other in sorted(path.parent.iterdir()) if other != path and _is_dicom(other)]


def _is_dicom(path: Path) -> bool:
    if not os.path.isfile(path):
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
