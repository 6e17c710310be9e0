"""Working files planted next to a map by another user: refused in a sentence, without harm (finding M6)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import numpy as np
import pytest
from map_writing import genes_of, publish, spots_of

from mclst.kernels.definition.result import RetrievalResult
from mclst.runtime.atomic import open_private
from mclst.runtime.errors import OutputError
from mclst.runtime.expression_map.parts import PartWriter, SlidePart
from mclst.runtime.expression_map.row_writer import RowWriter
from mclst.runtime.expression_map.writer import MapWriter

OTHER_USER = 65534
FINGERPRINT = {"slide": "abc", "bundle": "def"}
VALUES = np.arange(40, dtype=np.float32).reshape(10, 4)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def write(writer: RowWriter, rows: slice) -> None:
    count = len(VALUES[rows])
    ones = np.ones(count, np.float32)
    writer.write(np.arange(10)[rows], RetrievalResult(VALUES[rows], ones, ones))


def map_writer(folder: Path) -> MapWriter:
    return MapWriter(folder / "map.h5ad", genes=genes_of(4), spots=spots_of(10), overwrite=False)


def part_writer(folder: Path) -> PartWriter:
    return PartWriter(folder / "map.h5ad", SlidePart(2, 0), (10, 4))


WRITERS: dict[str, tuple[Callable[[Path], RowWriter], str]] = {
    "map": (map_writer, ".map.h5ad"),
    "part": (part_writer, ".map.part-1-of-2"),
}


def stopped_run(folder: Path, writer: str = "map") -> None:
    """Leave what a run leaves that is stopped after six rows."""
    with WRITERS[writer][0](folder) as run:
        write(run, slice(6))
        run.begin(FINGERPRINT)


def foreign(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file away")
    try:
        os.chown(path, OTHER_USER, OTHER_USER)
    except OSError as error:
        pytest.skip(f"this root cannot give a file away ({error.strerror})")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as sock, chdir(path.parent):
        sock.bind(path.name)


def hard_link(path: Path) -> None:
    os.link(path, path.with_name("precious"))


def folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


def writable_by(mode: int) -> Callable[[Path], None]:
    return lambda path: path.chmod(mode)


PLANTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another user's": (foreign, f"belongs to user {OTHER_USER}"),
    "a pipe": (pipe, "is not a plain file"),
    "a link to /dev/zero": (endless, "is not a plain file"),
    "a socket": (unix_socket, "is not a plain file"),
    "a folder": (folder_there, "map"),
    "a hard link": (hard_link, "is a hard link"),
    "writable by the group": (writable_by(0o664), "may be written by others"),
    "writable by all": (writable_by(0o646), "may be written by others"),
}


@pytest.mark.parametrize("how", PLANTED)
@pytest.mark.parametrize("file", ["rows", "journal"])
@pytest.mark.parametrize("writer", WRITERS)
def test_m6_a_planted_working_file_is_refused(tmp_path: Path, writer: str, file: str, how: str) -> None:
    make, name = WRITERS[writer]
    plant, reason = PLANTED[how]
    with umask(0o022):
        stopped_run(tmp_path, writer)
        planted = tmp_path / f"{name}.{file}"
        before = planted.read_bytes()
        plant(planted)
        for step in (lambda run: run.resume(FINGERPRINT), lambda run: run.begin(FINGERPRINT)):
            with pytest.raises(OutputError, match=reason) as refusal, make(tmp_path) as run:
                step(run)
            assert planted.name in str(refusal.value) or how == "a folder"
            assert "\n" not in str(refusal.value)
            if how == "a hard link":
                assert (tmp_path / "precious").read_bytes() == before
                assert os.path.samefile(planted, tmp_path / "precious") if planted.exists() else True
    assert not (tmp_path / "map.h5ad").exists()


def test_m6_a_map_never_belongs_to_who_planted_its_rows(tmp_path: Path) -> None:
    rows = tmp_path / ".map.h5ad.rows"
    rows.touch()
    foreign(rows)
    with pytest.raises(OutputError, match="belongs to user"):
        map_writer(tmp_path)
    assert rows.stat().st_uid == OTHER_USER and rows.stat().st_size == 0


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077, 0o000], ids=oct)
def test_m6_a_stopped_run_of_any_umask_is_resumed(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        stopped_run(tmp_path)
        (tmp_path / "new").touch()
        with map_writer(tmp_path) as run:
            state = run.resume(FINGERPRINT)
            assert state is not None and state.rows == 6 and not state.changed
            write(run, slice(6, None))
            path = publish(run)
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode
    assert {item.name for item in tmp_path.iterdir()} == {"map.h5ad", "new"}


def test_m6_an_owner_that_the_file_system_sets_is_no_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_run(tmp_path)
    # As where NFS maps root to nobody: all files here, new ones too, belong to somebody else.
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    with map_writer(tmp_path) as run:
        state = run.resume(FINGERPRINT)
    assert state is not None and state.rows == 6
    assert {item.name for item in tmp_path.iterdir()} == {".map.h5ad.rows", ".map.h5ad.journal"}


def test_m6_a_file_is_emptied_only_after_the_check(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    os.link(path, tmp_path / "link")
    with pytest.raises(OutputError):
        open_private(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    assert path.read_bytes() == b"content"
    (tmp_path / "link").unlink()
    handle = open_private(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    assert os.get_blocking(handle) and path.read_bytes() == b""
    os.close(handle)
    with pytest.raises(FileNotFoundError):
        open_private(tmp_path / "no folder" / "file", os.O_RDWR | os.O_CREAT)
