"""Identify files by stamp (device, inode, size, time) and by SHA-256."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

Stamp = tuple[int, ...] | None


def stamp(path: Path) -> Stamp:
    """Device, inode, size and modification time of a file; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hex; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
