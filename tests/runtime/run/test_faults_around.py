"""Faults of what is around a run: memory, disk, pipes, signals, names, files that change; what it keeps, it
keeps whole.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import anndata
import pytest
from forked_runs import HASHED_AT_ONCE, WORDS, ForkServer, assert_one_sentence, tree

from mclst.runtime.report.page.openseadragon import VIEWER_PATH

LEFT_BY_A_STOP = {".slide.h5ad.rows", ".slide.h5ad.journal", "slide.run.json"}


@pytest.fixture(scope="module")
def here_once(
    run_inputs: Path, fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, bytes]:
    """The folder, and X as a run that nothing befalls writes it."""
    folder, log_dir = tmp_path_factory.mktemp("once"), tmp_path_factory.mktemp("said")
    shutil.copytree(run_inputs, folder, dirs_exist_ok=True)
    assert fork_server.run(folder, *WORDS, log_dir=log_dir).code == 0
    return folder, anndata.read_h5ad(folder / "slide.h5ad").X.tobytes()


@pytest.fixture
def whole(here_once: tuple[Path, bytes]) -> bytes:
    return here_once[1]


@pytest.fixture
def here(run_inputs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_inputs, tmp_path / "here"))


def x_of(path: Path) -> bytes:
    return bytes(anndata.read_h5ad(path).X.tobytes())


def code(text: str) -> str:
    return textwrap.dedent(text)


@pytest.mark.parametrize("memory_mb", [10, 40])
@pytest.mark.slow
def test_a_limit_under_which_threads_would_hang_is_refused_at_once(
    fork_server: ForkServer, here: Path, log_dir: Path, memory_mb: int
) -> None:
    before = tree(here)
    assert_one_sentence(
        fork_server.run(here, *WORDS, log_dir=log_dir, memory_mb=memory_mb), 6, "where at least 48 are needed"
    )
    assert tree(here) == before


def test_threads_that_would_find_no_memory_are_not_begun(
    fork_server: ForkServer, here: Path, log_dir: Path, whole: bytes
) -> None:
    """What was loaded before may have taken it, and Python waits forever for a thread that dies at once."""
    before = code(
        """
        from mclst.runtime.tiling.tiles import Tiles
        stream = Tiles.stream
        def limit(megabytes):
            pages = int(open("/proc/self/statm").read().split()[0])
            most = pages * resource.getpagesize() + (megabytes << 20)
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        def limited(tiles, buffers):
            limit(10)
            return stream(tiles, buffers)
        Tiles.stream = limited
        limit(4000)
        """
    )
    ended = fork_server.run(here, *WORDS, log_dir=log_dir, before=before)
    assert_one_sentence(ended, 6, "where at least 20 are needed")
    assert fork_server.run(here, *WORDS, log_dir=log_dir).code == 0 and x_of(here / "slide.h5ad") == whole


EXHAUSTED = (
    HASHED_AT_ONCE
    + """
import importlib, itertools
owner = importlib.import_module("mclst.runtime.{module}").{owner}
real, calls = owner.{method}, itertools.count(1)
def exhausted(*args, **options):
    if next(calls) == {call}:
        raise MemoryError
    return real(*args, **options)
owner.{method} = exhausted
"""
)


@pytest.mark.parametrize(
    ("module", "owner", "method", "call"),
    [
        ("tiling.tiles", "Tiles", "_read_some", 30),
        ("encoder.cpu_stages", "CpuStages", "encode", 38),
        ("expression_map.writer", "MapWriter", "begin", 1),
        ("expression_map.writer", "MapWriter", "write", 2),
        ("expression_map.h5ad_layout", "H5adImage", "close", 1),
        ("expression_map.writer", "MapWriter", "publish", 1),
    ],
)
@pytest.mark.slow
def test_memory_that_ends_anywhere_is_one_sentence_and_then_carried_on(
    fork_server: ForkServer,
    here: Path,
    log_dir: Path,
    whole: bytes,
    module: str,
    owner: str,
    method: str,
    call: int,
) -> None:
    before = tree(here)
    fault = EXHAUSTED.format(module=module, owner=owner, method=method, call=call)
    assert_one_sentence(
        fork_server.run(here, *WORDS, log_dir=log_dir, before=fault), 6, "memory is too small"
    )
    assert {name: kept for name, kept in tree(here).items() if name not in LEFT_BY_A_STOP} == before
    assert fork_server.run(here, *WORDS, log_dir=log_dir).code == 0 and x_of(here / "slide.h5ad") == whole


@pytest.mark.stress
def test_little_memory_is_enough_or_said(
    fork_server: ForkServer, here: Path, log_dir: Path, whole: bytes
) -> None:
    """Where exactly memory ends is left to chance here, and a C library may abort where it does."""
    before = tree(here)
    for memory_mb in range(48, 420, 4):
        ended = fork_server.run(here, *WORDS, log_dir=log_dir, memory_mb=memory_mb)
        if ended.code != 0:
            assert_one_sentence(ended, 6)
            assert {name: kept for name, kept in tree(here).items() if name not in LEFT_BY_A_STOP} == before
            assert fork_server.run(here, *WORDS, log_dir=log_dir).code == 0
        assert x_of(here / "slide.h5ad") == whole
        for name in tree(here).keys() - before.keys():
            (here / name).unlink()


@pytest.mark.parametrize("file_bytes", [1000, 50_000, 1_000_000])
def test_a_limit_of_file_size_is_one_sentence(
    fork_server: ForkServer, here: Path, log_dir: Path, whole: bytes, file_bytes: int
) -> None:
    before = tree(here)
    assert_one_sentence(
        fork_server.run(here, *WORDS, log_dir=log_dir, file_bytes=file_bytes), 5, "File too large"
    )
    assert {name: kept for name, kept in tree(here).items() if name not in LEFT_BY_A_STOP} == before
    assert fork_server.run(here, *WORDS, log_dir=log_dir).code == 0 and x_of(here / "slide.h5ad") == whole


def test_a_full_device_for_what_is_said_costs_no_map(
    fork_server: ForkServer, here: Path, log_dir: Path, whole: bytes
) -> None:
    ended = fork_server.run(here, *WORDS, "-q", log_dir=log_dir, stdout="/dev/full")
    assert (
        ended.code == 5
        and "standard output cannot be written" in ended.stderr
        and "Traceback" not in ended.stderr
    )
    assert x_of(here / "slide.h5ad") == whole


def test_a_reader_that_went_away_costs_no_map(
    fork_server: ForkServer, here: Path, log_dir: Path, whole: bytes
) -> None:
    gone = "r, w = os.pipe(); os.close(r); os.dup2(w, 1)"
    ended = fork_server.run(here, *WORDS, "-q", log_dir=log_dir, before=gone)
    assert ended.code == 141 and ended.stderr == "" and x_of(here / "slide.h5ad") == whole


IN_TURN = """
import mclst.runtime.background
mclst.runtime.background.memory_is_limited = lambda: True  # then nothing runs beside the main thread
"""


@pytest.mark.parametrize(
    "before", [IN_TURN, pytest.param("", marks=pytest.mark.stress)], ids=["in turn", "in parallel"]
)
@pytest.mark.slow
def test_few_open_files_are_enough_or_said(
    fork_server: ForkServer, here: Path, log_dir: Path, before: str
) -> None:
    """In parallel, which file is one too many is left to chance."""
    for most in (6, 9, 11, 12, 13, 16):
        limit = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}))"
        ended = fork_server.run(here, *WORDS, log_dir=log_dir, before=before + limit)
        if ended.code:
            assert ended.code in (4, 5, 6) and "Traceback" not in ended.stderr and "Error: " in ended.stderr


def test_a_thread_that_does_not_start_is_a_lack_of_resources(
    fork_server: ForkServer, here: Path, log_dir: Path
) -> None:
    before = code(
        """
        import threading
        def refuse(thread): raise RuntimeError("can't start new thread")
        threading.Thread.start = refuse
        """
    )
    assert_one_sentence(fork_server.run(here, *WORDS, log_dir=log_dir, before=before), 6, "thread")


def test_a_second_signal_does_not_break_into_the_first(
    fork_server: ForkServer, here: Path, log_dir: Path, whole: bytes
) -> None:
    before = HASHED_AT_ONCE + code(
        """
        from mclst.runtime import console
        from mclst.runtime.run import predict
        from mclst.runtime.expression_map.writer import MapWriter
        console.CLEANUP_SECONDS = float("inf")  # however slow this machine cleans up
        real, report = MapWriter.write, predict.report_stop
        def write(writer, *args):
            if writer.resumable_rows:
                os.kill(os.getpid(), signal.SIGINT)
            real(writer, *args)
        def stop(*args):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            report(*args)
        MapWriter.write, predict.report_stop = write, stop
        """
    )
    assert_one_sentence(
        fork_server.run(here, *WORDS, "-q", log_dir=log_dir, before=before), 130, "interrupted"
    )
    assert json.loads((here / "slide.run.json").read_text())["status"] == "stopped"
    assert fork_server.run(here, *WORDS, log_dir=log_dir).code == 0 and x_of(here / "slide.h5ad") == whole


def test_a_signal_while_hdf5_lays_out_the_map_is_no_defect(
    fork_server: ForkServer, here: Path, log_dir: Path, whole: bytes
) -> None:
    """It arrives in HDF5's first call of the file in memory as the image is closed."""
    before = HASHED_AT_ONCE + code(
        """
        from mclst.runtime.expression_map import writer
        from mclst.runtime.expression_map.h5ad_layout import H5adImage, _FileWithGaps
        seek, method, publish, amid = _FileWithGaps.seek, H5adImage.close, writer.MapWriter.publish, False
        def stopping_seek(*args):
            global amid
            if amid:
                amid = False
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0)  # the handler runs here
            return seek(*args)
        def stopped(*args):
            global amid
            H5adImage.close, amid = method, True
            return method(*args)
        def stopped_publish(*args, **named):
            H5adImage.close = stopped
            return publish(*args, **named)
        def wait(rows):  # in which the stop is raised at the latest
            time.sleep(900)
        _FileWithGaps.seek, writer.MapWriter.publish = stopping_seek, stopped_publish
        writer.RowFile.fill_missing = wait
        """
    )
    assert_one_sentence(fork_server.run(here, *WORDS, log_dir=log_dir, before=before), 143, "are kept")
    assert fork_server.run(here, *WORDS, log_dir=log_dir).code == 0 and x_of(here / "slide.h5ad") == whole


VANISHES = """
from mclst.runtime.encoder.onnxruntime_cpu import OnnxSession
from mclst.runtime.run.hashes import SlideHash
real, enter = OnnxSession.encode, SlideHash.__enter__
def encode(session, tiles):
    {what}
    return real(session, tiles)
def hashed_before(slide_hash):
    entered = enter(slide_hash)
    slide_hash.result()
    return entered
OnnxSession.encode, SlideHash.__enter__ = encode, hashed_before
"""


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            "os.path.exists('slide.tif') and os.unlink('slide.tif')",
            "slide.tif changed while it was being read",
        ),
        ("os.truncate('slide.tif', 3000)", "slide.tif"),
        ("open('slide.tif', 'ab').write(b'more')", "slide.tif changed while it was being read"),
    ],
    ids=["gone", "cut", "longer"],
)
def test_a_slide_that_changes_under_the_run(
    fork_server: ForkServer, here: Path, log_dir: Path, what: str, words: str
) -> None:
    ended = fork_server.run(here, *WORDS, "-q", log_dir=log_dir, before=VANISHES.format(what=what))
    assert_one_sentence(ended, 4, words)
    assert not (here / "slide.h5ad").exists()


def test_a_bundle_that_changes_under_the_run(fork_server: ForkServer, here: Path, log_dir: Path) -> None:
    """Its bank is read after its hash was taken: the file may have been replaced between the two."""
    before = code(
        """
        from mclst.runtime.bundle import bundle
        real = bundle.read_bank
        def read(path):
            os.replace(path.with_name("other.h5"), path)
            return real(path)
        bundle.read_bank = read
        """
    )
    shutil.copy(here / "mclst-bundle/bank.h5", here / "mclst-bundle/other.h5")
    assert_one_sentence(fork_server.run(here, *WORDS, log_dir=log_dir, before=before), 4, "bank.h5")


def test_the_future_makes_no_difference(
    fork_server: ForkServer, here: Path, log_dir: Path, whole: bytes
) -> None:
    for path in here.rglob("*"):
        os.utime(path, (4e9, 4e9))
    assert fork_server.run(here, *WORDS, log_dir=log_dir).code == 0 and x_of(here / "slide.h5ad") == whole


@pytest.mark.parametrize("name", ["with space", "ñandú", "组织 切片", "a\nb", "-q", "'\"$(x)", "x" * 200])
def test_odd_names_of_files_work(
    fork_server: ForkServer, here: Path, log_dir: Path, whole: bytes, name: str
) -> None:
    (here / "slide.tif").rename(here / f"{name}.tif")
    (here / "spots.csv").rename(here / f"{name}.csv")
    words = ("--spots", f"./{name}.csv", "--no-picture", "-q", "--", f"{name}.tif")
    ended = fork_server.run(here, *words, log_dir=log_dir)
    assert ended.code == 0, ended.stderr
    assert ended.stdout == f"{name}.h5ad\n" and x_of(here / f"{name}.h5ad") == whole


@pytest.mark.parametrize("length", [230, 250, 256, 5000])
def test_names_too_long_are_refused_before_the_work(
    fork_server: ForkServer, here: Path, log_dir: Path, length: int
) -> None:
    before = tree(here)
    assert_one_sentence(fork_server.run(here, *WORDS, "--out", "x" * length + ".h5ad", log_dir=log_dir), 5)
    assert tree(here) == before


# A disk that is truly full: a small file system in memory, in a name space of its own


@pytest.fixture(scope="module")
def apart() -> Iterator[ForkServer]:
    """Runs that may mount what they like, where the system lets an ordinary user do that."""
    command = ("unshare", "--user", "--map-root-user", "--mount")
    probe = "mount -t tmpfs -o size=1m tmpfs /tmp"
    try:
        done = subprocess.run([*command, "sh", "-c", probe], capture_output=True, check=False)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here ({error})")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here ({done.stderr.decode().strip()})")
    with ForkServer(*command) as server:
        yield server


def mount(apart: ForkServer, here: Path, log_dir: Path, megabytes: int) -> Path:
    """A folder `disk` of that size within `here`, seen by the runs of `apart` alone."""
    disk = here / "disk"
    disk.mkdir()
    words = f"['mount', '-t', 'tmpfs', '-o', 'size={megabytes}m', 'tmpfs', {str(disk)!r}]"
    ended = apart.run(
        here, log_dir=log_dir, before=f"import subprocess; subprocess.run({words}, check=True); sys.exit(0)"
    )
    assert ended.code == 0, ended.stderr
    return disk


def listed(apart: ForkServer, here: Path, log_dir: Path) -> set[str]:
    return set(
        apart.run(
            here, log_dir=log_dir, before="print(*os.listdir('disk'), sep='\\n'); sys.exit(0)"
        ).stdout.split()
    )


INTO = (*WORDS, "--out", "disk/slide.h5ad")


@pytest.mark.slow
def test_a_disk_that_is_too_small_is_refused_before_the_work(
    apart: ForkServer, here: Path, log_dir: Path
) -> None:
    mount(apart, here, log_dir, 4)
    assert_one_sentence(apart.run(here, *INTO, log_dir=log_dir), 5, "MB free")
    assert listed(apart, here, log_dir) == set()


FILLED = """
import importlib
home = importlib.import_module("mclst.runtime.{module}")
for part in "{owner}".split():
    home = getattr(home, part)
real = home.{method}
def full(*args, **options):
    if not os.path.exists("disk/filler"):
        with open("disk/filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)): pass
            except OSError as error:
                assert error.errno == 28
    return real(*args, **options)
home.{method} = full
"""


@pytest.mark.parametrize(
    ("module", "owner", "method"),
    [
        ("expression_map.writer", "MapWriter", "write"),
        ("expression_map.writer", "MapWriter", "begin"),
        ("report.figures.contact_sheet", "", "write_contact_sheet"),
        ("run.publish", "", "write_report"),
    ],
    ids=["rows", "journal", "picture", "report"],
)
@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_sentence_and_then_carried_on(
    apart: ForkServer, here: Path, log_dir: Path, whole: bytes, module: str, owner: str, method: str
) -> None:
    mount(apart, here, log_dir, 40)
    words = (*INTO[:3], *INTO[4:])  # with the picture
    ended = apart.run(
        here, *words, "-q", log_dir=log_dir, before=FILLED.format(module=module, owner=owner, method=method)
    )
    assert_one_sentence(ended, 5, "No space left on device")
    assert "slide.h5ad" not in listed(apart, here, log_dir)
    freed = "os.unlink('disk/filler')"
    ended = apart.run(here, *words, "-q", log_dir=log_dir, before=freed)
    assert ended.code == 0, ended.stderr
    page = {"slide.html"} if VIEWER_PATH.is_file() else set()
    assert listed(apart, here, log_dir) == {"slide.h5ad", "slide.genes.png", "slide.run.json"} | page
    fetch = "import shutil; shutil.copy('disk/slide.h5ad', 'fetched.h5ad'); sys.exit(0)"
    assert apart.run(here, log_dir=log_dir, before=fetch).code == 0
    assert x_of(here / "fetched.h5ad") == whole
