"""A run that is killed, interrupted or out of disk is resumed by the same command, to the same arrays."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from forked_runs import HASHED_AT_ONCE
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick
from synthetic_slides import tissue

from mclst.runtime import RunOptions, open_bundle, open_slide, predict
from mclst.runtime.cli.infer import main
from mclst.runtime.errors import MclstError, OutputError
from mclst.runtime.expression_map.journal import RECORD, Journal, describe_difference, read_journal

WORDS = [
    "slide.tif",
    "--grid",
    "12",
    "--genes",
    "GENE2,GENE0",
    "--no-picture",
    "--no-html",
    "--workers",
    "2",
    "-q",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, small_bundle: Path) -> Path:
    """slide.tif, mclst-bundle with a fast encoder, and whole.h5ad: the map of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("resume")
    shutil.copytree(small_bundle, folder / "mclst-bundle")
    tifffile.imwrite(
        folder / "slide.tif", tissue(900, 1100), tile=(128, 128), compression="jpeg", photometric="rgb",
        resolution=(20000, 20000), resolutionunit="CENTIMETER", metadata=None,
    )  # fmt: skip
    here = Path.cwd()
    os.chdir(folder)
    try:
        done = infer("--out", "whole.h5ad")
    finally:
        os.chdir(here)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed_at_once: None) -> Path:
    """A working folder with copies of both inputs."""
    shutil.copy(place / "slide.tif", tmp_path)
    shutil.copytree(place / "mclst-bundle", tmp_path / "mclst-bundle")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def infer(*words: str) -> Result:
    return CliRunner().invoke(main, [*WORDS, *words])


def arrays(path: Path) -> dict[str, bytes]:
    """The arrays of a map, and its names."""
    result = anndata.read_h5ad(path)
    columns = {name: result.obs[name].to_numpy().tobytes() for name in result.obs.columns}
    names = {
        "obs_names": "\n".join(result.obs_names).encode(),
        "var_names": "\n".join(result.var_names).encode(),
    }
    return {"X": result.X.tobytes(), "spatial": result.obsm["spatial"].tobytes(), **columns, **names}


def outputs(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"slide.tif", "mclst-bundle"}


DONE = {"slide.h5ad", "slide.run.json", "slide.genes.ome.tif"}

KILLED_AT_RANDOM = f"""
import os, random, signal, sys
import anndata.io, imagecodecs, scipy.ndimage, scipy.spatial, simplejpeg, tifffile  # once
from mclst.runtime.cli import infer
{HASHED_AT_ONCE}
CHANGES = ("open", "write", "pwrite", "posix_fallocate", "ftruncate", "fsync", "replace", "unlink")

def count_and_die(die_at):
    'Die before the call of that number of those that change files; the others are told by a file.'
    calls = []
    def counted(real):
        def call(*args, **named):
            calls.append(1)
            if len(calls) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **named)
        return call
    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    return calls

def run(die_at=0):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code, calls = 70, count_and_die(die_at)
        try:
            infer.main(sys.argv[1:])
        except SystemExit as end:
            code = end.code or 0
        finally:
            if not die_at:
                print(len(calls), file=open("calls", "w"))
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def put_away(name):
    os.rename("slide.h5ad", name)
    for name in ("slide.run.json", "slide.genes.ome.tif"):
        os.unlink(name)

assert run() == 0
calls = int(open("calls").read())
os.unlink("calls")
put_away("first.h5ad")
chance = random.Random(20)
kills = kept = 0
while kills < 10:
    code = run(die_at=chance.randint(1, calls))
    if code == -signal.SIGKILL:
        kills += 1
        kept += os.path.exists(".slide.h5ad.journal")
    else:
        assert code == 0, code
    if os.path.exists("slide.h5ad"):  # a resumed run makes fewer calls, and may finish before
        put_away(f"map{{kills}}.h5ad")
print(run(), kills, kept)
os.unlink("calls")
"""


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(here: Path, place: Path) -> None:
    """The moments are calls that change a file: no clock has a say in where a run dies."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_RANDOM, *WORDS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    code, kills, kept = map(int, done.stdout.split()[-3:])
    assert (code, kills) == (0, 10) and kept > 0
    whole = arrays(place / "whole.h5ad")
    maps = sorted(here.glob("*.h5ad"))
    assert {path.name for path in maps} >= {"first.h5ad", "slide.h5ad"}
    for path in maps:
        assert arrays(path) == whole, path.name
        path.unlink()
    assert outputs(here) == DONE - {"slide.h5ad"}


FULL = OSError(errno.ENOSPC, "No space left on device")
BROKEN = OSError(errno.EIO, "Input/output error")
FAULTS = [
    ("pwrite", 1, FULL),
    ("pwrite", 3, FULL),
    ("pwrite", 9, BROKEN),
    ("write", 2, FULL),
    ("write", 5, BROKEN),
    ("posix_fallocate", 1, FULL),
    ("posix_fallocate", 2, FULL),
    ("ftruncate", 1, BROKEN),
    ("fsync", 1, BROKEN),
    ("fsync", 2, FULL),
    ("fsync", 3, FULL),
    ("replace", 1, BROKEN),
    ("replace", 3, BROKEN),
    ("pread", 2, BROKEN),
]


@pytest.mark.parametrize(
    ("name", "call", "error"), FAULTS, ids=[f"{f[0]}-{f[1]}-{f[2].errno}" for f in FAULTS]
)
@pytest.mark.slow
def test_a_disk_that_fails_anywhere_is_one_sentence_and_then_carried_on(
    here: Path, place: Path, name: str, call: int, error: OSError
) -> None:
    with failing_of_map(name, call, error):
        done = infer()
    assert done.exit_code == 5, done.output
    assert done.stderr.count("\n") == 1 and "slide" in done.stderr and "Traceback" not in done.stderr
    assert not (here / "slide.h5ad").exists()
    again = infer()
    assert again.exit_code == 0, again.output
    assert arrays(here / "slide.h5ad") == arrays(place / "whole.h5ad")
    assert outputs(here) == DONE


@contextmanager
def failing_of_map(name: str, call: int, error: OSError) -> Iterator[None]:
    """`os.<name>` raises from its `call`-th call on a hidden file of the run: the slide and the terminal are
    spared.
    """
    real: Callable[..., Any] = getattr(os, name)
    calls = 0

    def of_map(first: Any) -> bool:
        shown = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
        return "/.slide." in shown or shown.startswith(".slide.")

    def faulty(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += of_map(args[0])
        if of_map(args[0]) and calls >= call:
            raise error
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, faulty)
        yield


def stop_after(here: Path, groups: int, **changes: Any) -> None:
    """Run until `groups` groups of tiles are written, then end as a dying process does."""
    from mclst.runtime.expression_map.writer import MapWriter

    real = MapWriter.write
    written = 0

    def write(writer: MapWriter, *args: Any) -> None:
        nonlocal written
        real(writer, *args)
        written += 1
        if written > groups:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MapWriter, "write", write)
        done = infer(*changes.get("words", ()))
    assert done.exit_code == 130, done.output
    assert (here / ".slide.h5ad.journal").exists()


def test_the_same_command_carries_on_and_says_so(here: Path, place: Path) -> None:
    stop_after(here, 2)
    done = CliRunner().invoke(main, [word for word in WORDS if word != "-q"])
    assert done.exit_code == 0, done.output
    total = anndata.read_h5ad(here / "slide.h5ad").n_obs
    report = json.loads((here / "slide.run.json").read_text())
    assert 512 <= report["run"]["carried_on"] < total and report["status"] == "done"
    assert f"resuming a stopped run: {report['run']['carried_on']:,} of {total:,} spots" in done.stderr
    assert arrays(here / "slide.h5ad") == arrays(place / "whole.h5ad")
    assert outputs(here) == DONE


def touch_slide(here: Path) -> None:
    pixels = tifffile.imread(here / "slide.tif")
    pixels[:128, :128] = 200
    tifffile.imwrite(
        here / "slide.tif", pixels, tile=(128, 128), compression="jpeg", photometric="rgb",
        resolution=(20000, 20000), resolutionunit="CENTIMETER", metadata=None,
    )  # fmt: skip


def touch_bundle(here: Path) -> None:
    path = here / "mclst-bundle" / "manifest.json"
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (touch_slide, (), "the slide"),
        (touch_bundle, (), "the bundle"),
        (None, ("--k", "7"), "k (10 → 7)"),
        (None, ("--grid", "13"), "the table of spots"),
        (None, ("--weighting", "uniform"), "weighting (inverse-square → uniform)"),
        (None, ("--batch-size", "8"), "the batch size (16 → 8)"),
        (None, ("--reader", "openslide"), "the slide's reader (tifffile → openslide)"),
    ],
)
@pytest.mark.slow
def test_another_run_starts_anew_and_says_why(
    here: Path, change: Callable[[Path], None] | None, words: tuple[str, ...], message: str
) -> None:
    stop_after(here, 2)
    if change is not None:
        change(here)
    done = CliRunner().invoke(main, [*(word for word in WORDS if word != "-q"), *words])
    assert done.exit_code == 0, done.output
    assert f"{message}" in done.stderr and "starting over" in done.stderr
    with_leftovers = arrays(here / "slide.h5ad")
    assert infer(*words, "--overwrite").exit_code == 0
    assert arrays(here / "slide.h5ad") == with_leftovers


def test_starting_anew_can_be_asked_for(here: Path, place: Path) -> None:
    stop_after(here, 2)
    (here / "slide.run.json").unlink()
    done = infer("--no-resume")
    assert done.exit_code == 0, done.output
    assert json.loads((here / "slide.run.json").read_text())["run"]["carried_on"] == 0
    assert arrays(here / "slide.h5ad") == arrays(place / "whole.h5ad")


def test_rows_and_journals_that_rotted_meanwhile_are_not_believed(here: Path, place: Path) -> None:
    stop_after(here, 2)
    rows = bytearray((here / ".slide.h5ad.rows").read_bytes())
    for at in range(5000, 40_000, 997):
        rows[at] ^= 0x5A
    (here / ".slide.h5ad.rows").write_bytes(rows)
    journal = bytearray((here / ".slide.h5ad.journal").read_bytes())
    end = read_journal(here / ".slide.h5ad.journal")[2]  # type: ignore[index]
    journal[end - 100] ^= 1
    (here / ".slide.h5ad.journal").write_bytes(journal)
    assert infer().exit_code == 0
    assert 0 < json.loads((here / "slide.run.json").read_text())["run"]["carried_on"] < 4 * 512
    assert arrays(here / "slide.h5ad") == arrays(place / "whole.h5ad")


def test_a_picture_of_another_run_is_not_overwritten(here: Path) -> None:
    stop_after(here, 2)
    (here / "slide.genes.ome.tif").write_text("precious")
    done = infer("--k", "9")
    assert done.exit_code == 5 and "slide.genes.ome.tif" in done.stderr
    assert (here / "slide.genes.ome.tif").read_text() == "precious"


def test_a_slide_that_changes_under_the_run_is_an_error(here: Path) -> None:
    slide, bundle = open_slide("slide.tif"), open_bundle("mclst-bundle")
    (here / "spots.csv").write_text("id,x,y\n" + "".join(f"s{i},{i},{i % 800}\n" for i in range(1000)))

    def change(tiles: int) -> None:
        os.utime("slide.tif", (1, 1))

    with slide, pytest.raises(MclstError, match="changed while it was being read"):
        predict(bundle, slide, "spots.csv", "slide.h5ad", RunOptions(picture=False), advance=change)
    assert not (here / "slide.h5ad").exists()


def test_two_runs_on_one_output(here: Path) -> None:
    from mclst.runtime.expression_map.lock import lock_output

    held = lock_output(here / "slide.h5ad")
    done = infer()
    assert done.exit_code == 5 and "being written by another run" in done.stderr
    held.remove()
    assert infer().exit_code == 0


def test_without_locks_a_stopped_run_is_not_carried_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    from mclst.runtime.expression_map.writer import MapWriter

    real = MapWriter.write

    def write(writer: MapWriter, *args: Any) -> None:
        real(writer, *args)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MapWriter, "write", write)
        assert infer().exit_code == 130
    assert outputs(here) == set()
    assert infer().exit_code == 0 and outputs(here) == DONE


records = st.lists(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.floats(width=32), st.floats(width=32)),
    min_size=1, max_size=20,
)  # fmt: skip


@quick
@given(blocks=st.lists(records, max_size=5), cut=st.floats(0, 1), flip=st.floats(0, 1))
def test_a_journal_is_believed_up_to_where_it_is_damaged(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[Any], cut: float, flip: float
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    journal = Journal.begin(path, {"the slide": "abc", "k": "3"}, 100)
    written = [np.array(block, RECORD) for block in blocks]
    for block in written:
        journal.append(block)
    journal.close()
    run_fingerprint, result, end = read_journal(path) or pytest.fail("not read")
    assert run_fingerprint == {"the slide": "abc", "k": "3"}
    assert result.tobytes() == b"".join(block.tobytes() for block in written)
    content = bytearray(path.read_bytes()[:end])
    content[min(int(flip * end), end - 1)] ^= 0xFF
    path.write_bytes(content[: int(cut * end)])
    damaged = read_journal(path)
    assert damaged is None or result.tobytes().startswith(damaged[1].tobytes())


@quick
@given(content=st.binary(max_size=300))
def test_any_bytes_are_a_journal_or_none(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    path.write_bytes(content)
    read_journal(path)
    path.write_bytes(b'{"format": "mclst-journal/1", "made_of": {}}\n' + content)
    run_fingerprint, result, _ = read_journal(path) or pytest.fail("not read")
    assert run_fingerprint == {} and result.dtype == RECORD


def test_what_changed_names_hashes_and_shows_settings() -> None:
    before = {"the slide": "a" * 64, "k": "10", "gone": "1"}
    now = {"the slide": "b" * 64, "k": "12", "new": "2"}
    assert describe_difference(before, now) == "the slide, k (10 → 12), gone, new"
    assert describe_difference(now, dict(now)) == ""


def test_an_output_error_of_a_run_with_rows_says_what_is_kept(here: Path) -> None:
    with failing_of_map("ftruncate", 1, FULL):
        done = infer()
    assert "No space left on device" in done.stderr and "are kept beside slide.h5ad" in done.stderr
    assert issubclass(OutputError, MclstError) and json.loads((here / "slide.run.json").read_text())["reason"]
