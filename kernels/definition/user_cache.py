"""Files that this user keeps between commands, and whether others may have written a file.

In `$MCLST_CACHE`, else `$XDG_CACHE_HOME/mclst`, else `~/.cache/mclst`.
A file that other users may have written is not used.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".unfinished-"
"""Prefix of a file that is being written."""
ABANDONED_S = 86_400.0
"""Age from which an unfinished file counts as left by a process that was killed."""


def cache_folder() -> Path:
    """Return the folder, which need not exist; one that cannot exist for a user without a home."""
    if folder := os.environ.get("MCLST_CACHE"):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder, "mclst")
    try:
        return Path.home() / ".cache" / "mclst"
    except RuntimeError:  # neither HOME nor an entry in the passwd file, as in some containers
        return Path(os.devnull, "mclst")


def others_may_write(status: os.stat_result, owners: Collection[int], allowed: int = 0) -> str:
    """Why users other than `owners` may have written a file or folder; "" if they cannot have.

    allowed: mode whose write permissions for group and others it may have.
    """
    if status.st_uid not in owners:
        return f"belongs to user {status.st_uid}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) & ~allowed:
        return f"may be written by others (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


def open_own(path: Path) -> BinaryIO | None:
    """Open a file that nobody but this user and root can have written; None for any other."""
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    except OSError:
        return None
    try:
        status = os.fstat(file.fileno())
        trusted = (0, os.geteuid())
        others = any(others_may_write(item, trusted) for item in (status, path.parent.stat()))
        if not others and stat.S_ISREG(status.st_mode):
            return file
    except OSError:
        pass
    file.close()
    return None


def read_own(path: Path) -> bytes | None:
    """Content of a file that nobody but this user and root can have written; None for any other."""
    file = open_own(path)
    if file is None:
        return None
    with file:
        try:
            return file.read()
        except OSError:
            return None


@contextmanager
def write_own(path: Path) -> Iterator[BinaryIO]:
    """Open a file that gets its name once the `with` body is through, in a private folder.

    Nothing is left of a body that raises, nor for long of a process that was killed. Raises OSError if the
    file system refuses.
    """
    for folder in (cache_folder(), path.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.environ.get("MCLST_CACHE"):
            folder.chmod(0o700)  # earlier versions left it to the umask, such as 002
    _remove_abandoned(path.parent)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=UNFINISHED, delete=False) as file:
        try:
            yield file  # type: ignore[misc]
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise


def _remove_abandoned(folder: Path) -> None:
    for path in folder.glob(f"{UNFINISHED}*"):
        with suppress(OSError):  # removed meanwhile
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink()


def store_own(path: Path, content: bytes) -> bool:
    """Write `content` atomically into a private folder; return False if the file system refuses."""
    try:
        with write_own(path) as file:
            file.write(content)
    except OSError:
        return False
    return True
