"""Outputs appear whole or not at all: written beside their place, synced, then renamed into it."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
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


def check_writable(path: Path, *, overwrite: bool, folder: bool = False, option: str = "--out") -> None:
    """Refuse an output before any work is done for it.

    folder: whether the output is one; else it is a file. option: by which its user names it. Raises OutputError where
    `path` exists and `overwrite` is False, or is of another kind (a device, a folder where a file should be), or its
    folder is missing or cannot be written.
    """
    home = path.absolute().parent
    if not path.name or path.name == "..":
        raise OutputError(
            f"{str(path)!r} names no {'folder' if folder else 'file'} to write; choose another {option}"
        )
    probe = beside(home / path.name)
    try:
        if not home.is_dir():
            raise OutputError(f"{home} is not a folder; make it first or choose another {option}")
        if os.path.lexists(path) and not overwrite:
            raise OutputError(f"{path} exists; choose another {option} or add --overwrite")
        if path.exists() and not (path.is_dir() if folder else path.is_file()):
            raise OutputError(
                f"{path} is not a {'folder' if folder else 'plain file'}; choose another {option}"
            )
        probe.touch(exist_ok=False)
    except OSError as error:
        raise OutputError(
            f"{home} cannot be written ({error.strerror or error}); choose another {option}"
        ) from error
    probe.unlink(missing_ok=True)


def check_apart(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """Refuse outputs that would destroy an input, or one another; asked before any work, whatever `--overwrite` says.

    A file inside an input folder (a bundle) counts as an input once it exists. None stands for nothing.
    Raises OutputError.
    """
    seen: set[Path] = set()
    given = [path.resolve() for path in inputs if path is not None]
    for output in filter(None, outputs):
        place = output.resolve()
        if any(place == path or (place.exists() and path in place.parents) for path in given):
            raise OutputError(f"{output} is an input of this run and would be lost; choose another place")
        if place in seen:
            raise OutputError(f"{output} would be written twice; give each output a place of its own")
        seen.add(place)


def remove_stale(path: Path) -> None:
    """Remove what dead processes left beside `path` under names of their own (`.NAME.<pid>-<hex>.part`)."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)(?:-[0-9a-f]+)?\.part")
    folder = path.absolute().parent
    for found in os.listdir(folder):
        match = pattern.fullmatch(found)
        if match is None or _alive(int(match[1])):
            continue
        with suppress(OSError):  # gone by now, or another user's
            if (folder / found).is_dir():
                shutil.rmtree(folder / found)
            else:
                (folder / found).unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


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

    def __init__(self, path: Path, *, mark: str, overwrite: bool, option: str = "--out") -> None:
        """Make the hidden folder.

        mark: the file by which a folder of this kind is known; nothing else is ever overwritten. option: by which its
        user names it.
        Raises OutputError as `check_writable` does, and where `path` is there and is not such a folder.
        """
        check_writable(path, overwrite=overwrite, folder=True, option=option)
        remove_stale(path)
        self.mark = mark
        self._option = option
        self.overwrite = overwrite
        self._check_mark(path)
        self.path = path
        self.part = beside(path.absolute())
        try:
            self.part.mkdir()
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror or error}); choose another {self._option}"
            ) from error

    def _check_mark(self, path: Path) -> None:
        if path.exists() and not (path / self.mark).is_file() and any(path.iterdir()):
            raise OutputError(
                f"{path} exists and has no {self.mark}, so it is not overwritten; choose another {self._option}"
            )

    def publish(self) -> Path:
        """Rename the hidden folder to `path`, an older one of that name out of the way first; returns `path`.

        Raises OutputError where the file system refuses, or something that may not be overwritten came there meanwhile.
        """
        aside = beside(self.path.absolute())
        check_writable(self.path, overwrite=self.overwrite, folder=True, option=self._option)
        self._check_mark(self.path)
        try:
            if self.overwrite and os.path.lexists(self.path):
                os.rename(self.path, aside)
            # Without --overwrite, renaming onto a folder that came meanwhile fails unless that folder is empty.
            os.rename(self.part, self.path)
            sync_folder(self.path.absolute().parent)
        except OSError as error:
            if aside.exists() and not self.path.exists():
                os.rename(aside, self.path)
            raise OutputError(
                f"{self.path} cannot be replaced ({error.strerror or error}); choose another {self._option}"
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
