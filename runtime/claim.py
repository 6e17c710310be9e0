"""One run per output: a hidden file beside it, locked while its run lives, swept away once that run is dead."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path

from mclst.runtime.errors import OutputError
from mclst.runtime.publish import beside


def claim(path: Path) -> tuple[Path, int]:
    """Open a hidden, locked, empty file beside `path`: (its path, its handle, to read and write).

    Leftovers of dead runs on the same `path` are removed first. The lock ends with the handle, however the run ends.
    Raises OutputError where a live run is writing `path`, OSError where the folder refuses.
    """
    _sweep(path)
    part = beside(path.absolute())
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    with suppress(OSError):  # a file system without locks; the hidden name is unique all the same
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return part, handle


def _sweep(path: Path) -> None:
    """Remove what dead runs left beside `path`; raises OutputError where a live run is writing it."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)(?:-[0-9a-f]+)?\.part")
    folder = path.absolute().parent
    for found in os.listdir(folder):
        if not (match := pattern.fullmatch(found)) or not (folder / found).is_file():
            continue
        try:
            handle = os.open(folder / found, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # gone by now, or another user's
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            pid = int(match[1])
            if pid == os.getpid() or not _alive(pid):
                (folder / found).unlink(missing_ok=True)
        except BlockingIOError as error:
            raise OutputError(
                f"{path} is being written by another run (process {match[1]}); wait for it or choose another --out"
            ) from error
        except OSError:  # no locks on this file system: whose it is cannot be told, so it stays
            continue
        finally:
            os.close(handle)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
