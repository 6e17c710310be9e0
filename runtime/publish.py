"""Outputs appear whole or not at all: written beside their place, synced, then renamed into it."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from mclst.runtime.errors import OutputError


def beside(path: Path) -> Path:
    """A hidden name in the same folder, unique to this process: `.NAME.<pid>-<hex>.part`."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Refuse an output before any work is done for it.

    Raises OutputError where `path` exists and `overwrite` is False, or its folder is missing or cannot be written.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"{folder} is not a folder; make it first or choose another --out")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{path} exists; choose another --out or add --overwrite")
    probe = beside(folder / path.name)
    try:
        probe.touch(exist_ok=False)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror or error}); choose another --out"
        ) from error
    probe.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Hand out a hidden path to write; on leaving, sync it and rename it to `path`; on an exception remove it.

    Raises OutputError where the file system refuses.
    """
    part = beside(path)
    try:
        yield part
        handle = os.open(part, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(part, path)
        sync_folder(path.absolute().parent)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}); free space or choose another place"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all; raises OutputError."""
    with whole_file(path) as part, part.open("wb") as file:
        file.write(content)
        file.flush()


class WholeFolder:
    """A folder filled out of sight (`.part`) and renamed to `path` by `publish`; a context manager that leaves nothing."""

    def __init__(self, path: Path, *, mark: str, overwrite: bool) -> None:
        """Make the hidden folder.

        mark: the file by which a folder of this kind is known; nothing else is ever overwritten.
        Raises OutputError as `check_writable` does, and where `path` is there and is not such a folder.
        """
        if (
            overwrite
            and path.exists()
            and not (path / mark).is_file()
            and (path.is_file() or any(path.iterdir()))
        ):
            raise OutputError(
                f"{path} exists and has no {mark}, so it is not overwritten; choose another --out"
            )
        check_writable(path, overwrite=overwrite)
        self.path = path
        self.part = beside(path.absolute())
        try:
            self.part.mkdir()
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror or error}); choose another --out"
            ) from error

    def publish(self) -> Path:
        """Rename the hidden folder to `path`, an older one of that name out of the way first; returns `path`."""
        aside = beside(self.path.absolute())
        try:
            if os.path.lexists(self.path):
                os.rename(self.path, aside)
            os.rename(self.part, self.path)
            sync_folder(self.path.absolute().parent)
        except OSError as error:
            if aside.exists() and not self.path.exists():
                os.rename(aside, self.path)
            raise OutputError(
                f"{self.path} cannot be replaced ({error.strerror or error}); choose another --out"
            ) from error
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)
        return self.path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.part, ignore_errors=True)
