"""Outputs appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mclst.runtime.atomic import (
    AtomicFolder,
    atomic_file,
    check_distinct,
    check_writable,
    remove_stale,
    temp_path,
    write_atomically,
)
from mclst.runtime.errors import OutputError


def test_a_file_appears_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a") as part:
        part.write_bytes(b"half")
        raise RuntimeError
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from mclst.runtime.atomic import write_atomically; from mclst.runtime.errors import OutputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomically(Path(sys.argv[1]), bytes(5000))\n"
        "except OutputError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a")], capture_output=True, text=True, check=True
    )
    assert "cannot be written" in done.stdout
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_places_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not a folder"):
        check_writable(tmp_path / "no" / "a", overwrite=False)
    (tmp_path / "a").touch()
    with pytest.raises(OutputError, match="add --overwrite"):
        check_writable(tmp_path / "a", overwrite=False)
    check_writable(tmp_path / "a", overwrite=True)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="exists"):
        check_writable(tmp_path / "gone", overwrite=False)
    assert {p.name for p in tmp_path.iterdir()} == {"a", "gone"}


def test_what_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    for overwrite in (False, True):
        with AtomicFolder(tmp_path / "f", mark="mark", overwrite=overwrite) as folder:
            (folder.part / "mark").touch()
            (tmp_path / "f").mkdir()
            (tmp_path / "f" / "precious").touch()
            with pytest.raises(OutputError):
                folder.publish()
        assert [p.name for p in tmp_path.iterdir()] == ["f"] and (tmp_path / "f" / "precious").exists()
        shutil.rmtree(tmp_path / "f")


def test_an_output_is_no_input_holds_none_and_lies_in_none(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    whole, file = tmp_path / "in", tmp_path / "in" / "deep" / "file"
    for output, source, inside in (
        (file, file, False),
        (tmp_path / "link" / "deep" / "file", file, False),
        (whole, whole, False),
        (whole, file, False),
        (file, whole, True),
    ):
        with pytest.raises(OutputError, match="would be lost"):
            check_distinct((None, output), (None, source), inside=inside)
    check_distinct((file,), (whole,), inside=False)
    check_distinct((whole / "new",), (whole, tmp_path / "loop", tmp_path / ("n" * 300)))
    with pytest.raises(OutputError, match="written twice"):
        check_distinct((tmp_path / "a", tmp_path / "in" / ".." / "a"), ())


def test_leftovers_of_dead_runs_are_swept(tmp_path: Path) -> None:
    dead = tmp_path / f".f.{10**9}-0123abcd.part"  # above any process's number
    dead.mkdir()
    (dead / "half").touch()
    alive = tmp_path / f".f.{os.getpid()}-0123abcd.part"
    alive.mkdir()
    with AtomicFolder(tmp_path / "f", mark="mark", overwrite=False):
        assert not dead.exists() and alive.exists()


def test_files_of_another_machine_are_swept_a_day_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "n" * 220  # beside the longest name of a map that is made from a cohort's table
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="node-2.ü\udce4"))
    there = [temp_path(tmp_path / name) for _ in range(3)]
    monkeypatch.setattr(os, "getpid", lambda: 10**9)  # above any process's number
    there += [temp_path(tmp_path / name) for _ in range(2)]
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="node-1"))
    dead = temp_path(tmp_path / name)
    monkeypatch.undo()
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="node-1"))
    alive = temp_path(tmp_path / name)
    for path in (*there[1:], dead, alive):
        path.touch()
    there[0].mkdir()
    (there[0] / "half").touch()
    for path in (there[0], there[3], alive):
        os.utime(path, (1000, 1000))
    remove_stale(tmp_path / name)
    assert set(tmp_path.iterdir()) == {there[1], there[2], there[4], alive}


def test_a_folder_replaces_another_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "old").touch()
    with pytest.raises(OutputError, match="has no new"):
        AtomicFolder(tmp_path / "f", mark="new", overwrite=True)
    with AtomicFolder(tmp_path / "f", mark="old", overwrite=True) as folder:
        (folder.part / "new").touch()
        assert {p.name for p in (tmp_path / "f").iterdir()} == {"old"}
        folder.publish()
    assert {p.name for p in (tmp_path / "f").iterdir()} == {"new"} and len(list(tmp_path.iterdir())) == 1
