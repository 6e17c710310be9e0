"""One run per output: hidden files beside it, locked while their run lives, found again once it is dead."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mclst.runtime.atomic import beside, remove_stale
from mclst.runtime.errors import OutputError


@dataclass(frozen=True)
class RunLock:
    """A place that one run writes to.

    rows: the hidden file that becomes the output; handle: it, open to read and write. journal: the hidden file that
    says which of its rows are done. keeps: whether a later run finds both again; False where the file system has no
    locks, so that nobody could tell a dead run's files from a live one's.
    """

    rows: Path
    handle: int
    journal: Path
    keeps: bool

    def remove(self) -> None:
        """Remove both files and let go of the lock."""
        self.rows.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)
        os.close(self.handle)


def claim(path: Path) -> RunLock:
    """Open and lock the hidden files `.NAME.rows` and `.NAME.journal` beside `path`; a dead run's are found as left.

    Other leftovers of dead runs on the same `path` are removed first. The lock ends with the handle, however the run
    ends. Raises OutputError where a live run is writing `path`, OSError where the folder refuses.
    """
    remove_stale(path)
    folder, name = path.absolute().parent, path.name
    rows, journal = folder / f".{name}.rows", folder / f".{name}.journal"
    while True:
        handle = os.open(rows, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise OutputError(
                f"{path} is being written by another run; wait for it or choose another --out"
            ) from error
        except OSError:
            if os.fstat(handle).st_size == 0:
                rows.unlink(missing_ok=True)
            os.close(handle)
            return _unlocked(path)
        # A run that ended between opening and locking has renamed or removed what the handle holds.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(rows, follow_symlinks=False)):
                return RunLock(rows, handle, journal, keeps=True)
        os.close(handle)


def _unlocked(path: Path) -> RunLock:
    rows = beside(path.absolute())
    handle = os.open(rows, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    return RunLock(rows, handle, rows.with_name(f"{rows.name}.journal"), keeps=False)
