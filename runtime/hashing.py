"""Files known again: by stamp (inode, size, time) and by SHA-256."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

Stamp = tuple[int, ...] | None


def stamp(path: Path) -> Stamp:
    """Which file stands at `path`, and when it was last written; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hex; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
