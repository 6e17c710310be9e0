"""Identify files by stamp (device, inode, size, time) and by SHA-256."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

BLOCK_BYTES = 4 << 20
"""Read and hashed at once: between blocks a thread may wait milliseconds for others that hold the GIL."""
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
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        block = memoryview(bytearray(min(BLOCK_BYTES, os.fstat(file.fileno()).st_size + 1)))
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()
