"""One run per output: locked hidden files next to it, which the next run finds if this one dies."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mclst.runtime.atomic import open_private, remove_stale, temp_path
from mclst.runtime.errors import OutputError


@dataclass(frozen=True)
class RunLock:
    """The locked hidden files of one output.

    rows: path of the file that becomes the output; handle: its descriptor, open to read and write. journal:
    path of the file that lists the finished rows. resumable: whether the next run can find both; False on a
    file system without locks, where nobody can tell a dead run's files from a live one's.
    """

    rows: Path
    handle: int
    journal: Path
    resumable: bool

    def remove(self) -> None:
        """Remove both files and release the lock."""
        self.rows.unlink(missing_ok=True)
        with suppress(OSError):  # a folder, or planted by another user, which has been an OutputError
            self.journal.unlink(missing_ok=True)
        os.close(self.handle)


def journal_of(path: Path) -> Path:
    """The journal of an output."""
    return path.absolute().with_name(f".{path.name}.journal")


def lock_output(path: Path) -> RunLock:
    """Open and lock `.NAME.rows` and `.NAME.journal` next to `path`, keeping what a dead run left in them.

    Other leftovers of dead runs are removed first. The kernel drops the lock when the process ends, however
    it ends. Raises OutputError if a live run is writing `path` or another user may have planted the rows,
    OSError if the folder refuses.
    """
    remove_stale(path)
    folder, name = path.absolute().parent, path.name
    rows, journal = folder / f".{name}.rows", journal_of(path)
    while True:
        handle = open_private(rows, os.O_RDWR | os.O_CREAT)
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
            return _without_lock(path)
        # A run that ended between our open and our lock has renamed or removed the file: then open it again.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(rows, follow_symlinks=False)):
                return RunLock(rows, handle, journal, resumable=True)
        os.close(handle)


def remove_orphaned_journal(path: Path) -> None:
    """Remove the journal of a map whose run died right after publishing it; rows and live runs stay."""
    if not os.path.lexists(journal_of(path)):
        return
    with suppress(OutputError, OSError):  # a live run's, or a folder that refuses
        lock = lock_output(path)
        if os.fstat(lock.handle).st_size == 0:
            lock.remove()
        else:
            os.close(lock.handle)


def _without_lock(path: Path) -> RunLock:
    rows = temp_path(path.absolute())
    handle = os.open(rows, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    return RunLock(rows, handle, rows.with_name(f"{rows.name}.journal"), resumable=False)
