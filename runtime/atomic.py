"""Atomic outputs: written to a hidden temporary path in the same folder, synced, then renamed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from mclst.kernels.definition.user_cache import ABANDONED_S, others_may_write
from mclst.runtime.errors import OutputError, write_error


def temp_path(path: Path) -> Path:
    """A hidden path in the same folder, unique to this process: `.NAME.<pid>-<host><random>.part`.

    host, random: 8 hex digits each.
    """
    return path.with_name(f".{path.name}.{os.getpid()}-{_host()}{uuid.uuid4().hex[:8]}.part")


def _host() -> str:
    return f"{zlib.crc32(os.fsencode(os.uname().nodename)):08x}"


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, if the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def check_named(path: Path, kind: str = "file", *, option: str = "--out") -> None:
    """Raise OutputError if an output has no name of its own, such as `.`, `..`, `/` and the empty path.

    kind: what would be written, for the message.
    """
    if path.name in ("", ".."):
        raise OutputError(f"{str(path)!r} names no {kind} to write; choose another {option}")


def check_writable(path: Path, *, overwrite: bool, folder: bool = False, option: str = "--out") -> None:
    """Check, before any work, that an output can be written.

    Parameters
    ----------
    path : Path
        The output.
    overwrite : bool
        Whether it may exist.
    folder : bool
        Whether it is a folder, else a file.
    option : str
        The command-line option that sets it, for messages.

    Raises
    ------
    OutputError
        If the output exists without `overwrite` or is of another kind (a device, a folder instead of a file),
        or its folder is missing or read-only.
    """
    parent = path.absolute().parent
    check_named(path, "folder" if folder else "file", option=option)
    probe = temp_path(parent / path.name)
    try:
        if not parent.is_dir():
            raise OutputError(f"{parent} is not a folder; make it first or choose another {option}")
        if os.path.lexists(path) and not overwrite:
            raise OutputError(f"{path} exists; choose another {option} or add --overwrite")
        if path.exists() and not (path.is_dir() if folder else path.is_file()):
            raise OutputError(
                f"{path} is not a {'folder' if folder else 'plain file'}; choose another {option}"
            )
        probe.touch(exist_ok=False)
    except OSError as error:
        raise write_error(parent, error, f"choose another {option}") from error
    probe.unlink(missing_ok=True)


def check_distinct(
    outputs: Iterable[Path | None], inputs: Iterable[Path | None], *, inside: bool = True
) -> None:
    """Raise OutputError if an output would destroy an input or another output, whatever `--overwrite` says.

    None is skipped.

    inside: whether an existing file inside an input folder (a bundle) counts as an input.
    """
    seen: set[Path] = set()
    # Not Path.resolve and Path.exists, which raise for some paths that the inputs' readers refuse.
    sources = {Path(os.path.realpath(path)) for path in inputs if path is not None}
    holders = {folder for source in sources for folder in source.parents}
    for output in filter(None, outputs):
        path = Path(os.path.realpath(output))
        within = inside and os.path.exists(path)
        if path in sources or path in holders or (within and not sources.isdisjoint(path.parents)):
            raise OutputError(f"{output} is an input of this run and would be lost; choose another path")
        if path in seen:
            raise OutputError(f"{output} would be written twice; give each output its own path")
        seen.add(path)


def check_apart(folder: Path, bundle: Path, *, option: str) -> None:
    """Raise OutputError if one of two output folders holds the other: replacing it would destroy that one."""
    one, other = Path(os.path.realpath(folder)), Path(os.path.realpath(bundle))
    if one == other or one in other.parents or other in one.parents:
        raise OutputError(f"{folder} is, holds or is inside the bundle {bundle}; choose another {option}")


def open_private(path: Path, flags: int) -> int:
    """Open, or with O_CREAT create, a working file that only this user can have made; return its descriptor.

    Raises OutputError for a file that another user may have planted, OSError if the file system refuses.
    """
    # Neither a link is followed, nor does a pipe block.
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    handle = None
    try:
        while handle is None:
            if flags & os.O_CREAT:
                with suppress(FileExistsError):
                    return os.open(path, flags | os.O_EXCL, 0o666)
            try:
                handle = os.open(path, flags & ~(os.O_CREAT | os.O_TRUNC))
            except FileNotFoundError:  # another run has removed it just now
                if not flags & os.O_CREAT:
                    raise
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise
        raise OutputError(_foreign(path, "is not a plain file")) from error
    try:
        if reason := _why_foreign(path, os.fstat(handle)):
            raise OutputError(_foreign(path, reason))
        os.set_blocking(handle, True)
        if flags & os.O_TRUNC:
            os.ftruncate(handle, 0)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _why_foreign(path: Path, status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "is not a plain file"
    if status.st_nlink > 1:
        return "is a hard link"
    if not others_may_write(status, {os.geteuid()}):
        return ""
    # What a new file here has as well proves nothing: umask 002 lets the group write, as it may the finished
    # map; NFS that squashes root, or a FAT disk, sets the owner and the mode itself.
    probe = temp_path(path)
    handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        new = os.fstat(handle)
    finally:
        os.close(handle)
        probe.unlink(missing_ok=True)
    return others_may_write(status, {new.st_uid}, allowed=new.st_mode)


def _foreign(path: Path, reason: str) -> str:
    return f"{path} {reason}, so this run cannot trust it; remove it or choose another --out"


def remove_stale(path: Path) -> None:
    """Remove the temporary files that dead processes left for `path`, see `temp_path`.

    Whether a process of another machine lives is not known: its files go a day after their last change.
    """
    # Earlier versions did not name the host.
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)(?:-([0-9a-f]{8})?[0-9a-f]{8})?\.part")
    folder = path.absolute().parent
    for name in os.listdir(folder):
        match = pattern.fullmatch(name)
        if match is None:
            continue
        with suppress(OSError):  # gone by now, or owned by another user
            if match[2] not in (None, _host()):
                if time.time() - os.lstat(folder / name).st_mtime < ABANDONED_S:
                    continue
            elif _alive(int(match[1])):
                continue
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            else:
                (folder / name).unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextmanager
def writing(path: Path, *, option: str = "another path") -> Iterator[None]:
    """Turn an OSError into the error of `path`; see `write_error`."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error, f"free space or choose {option}") from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a hidden path to write; sync and rename it to `path` on success, remove it on an exception.

    Raises OutputError if the file system refuses.
    """
    part = temp_path(path)
    try:
        with writing(path):
            yield part
            handle = os.open(part, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(part, path)
            sync_folder(path.absolute().parent)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` completely or not at all; raises OutputError."""
    with atomic_file(path) as part, part.open("wb") as file:
        file.write(content)
        file.flush()


class AtomicFolder:
    """A folder filled under a hidden name (`part`), then renamed by `publish`; a context manager."""

    def __init__(self, path: Path, *, mark: str, overwrite: bool, option: str = "--out") -> None:
        """Create the hidden folder.

        Parameters
        ----------
        path : Path
            The final path.
        mark : str
            File that identifies a folder of this kind; a folder without it is never overwritten.
        overwrite, option
            See `check_writable`.

        Raises
        ------
        OutputError
            See `check_writable`; also if `path` exists and is no such folder.
        """
        check_writable(path, overwrite=overwrite, folder=True, option=option)
        remove_stale(path)
        self.mark = mark
        self._option = option
        self.overwrite = overwrite
        self._check_mark(path)
        self.path = path
        self.part = temp_path(path.absolute())
        try:
            self.part.mkdir()
        except OSError as error:
            raise write_error(path, error, f"choose another {self._option}") from error

    def _check_mark(self, path: Path) -> None:
        if path.exists() and not (path / self.mark).is_file() and any(path.iterdir()):
            raise OutputError(
                f"{path} exists and has no {self.mark}, so it is not overwritten; choose another "
                f"{self._option}"
            )

    def publish(self) -> Path:
        """Rename the hidden folder to `path`, replacing an older one; return `path`.

        Raises OutputError if the file system refuses, or if something not to be overwritten has appeared
        there.
        """
        aside = temp_path(self.path.absolute())
        check_writable(self.path, overwrite=self.overwrite, folder=True, option=self._option)
        self._check_mark(self.path)
        try:
            if self.overwrite and os.path.lexists(self.path):
                os.rename(self.path, aside)
            # Without --overwrite, this fails if a folder appeared meanwhile, unless that folder is empty.
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
