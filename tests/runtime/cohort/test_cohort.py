"""`mclst-infer --slides`: many slides by one command, in shards, run twice, some of them failing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from click.testing import CliRunner, Result
from forked_runs import ForkServer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_model import Small

from mclst.runtime.cli.infer import main
from mclst.runtime.cohort.table import shard_of
from mclst.runtime.run.job import Job

QUICK = ("--no-picture", "--no-html")
NAMES = ("A1", "A2", "B1")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Small, small_bundle: Path) -> Path:
    """Three slides with their spots, cohort.csv and mclst-bundle."""
    for name in NAMES:
        shutil.copy(small.folder / "images" / f"{name}.png", tmp_path)
        shutil.copy(small.folder / "spots" / f"{name}_selection.tsv", tmp_path / f"{name}.tsv")
    shutil.copytree(small_bundle, tmp_path / "mclst-bundle")
    write_table(tmp_path, "slide,spots", *(f"{name}.png,{name}.tsv" for name in NAMES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_table(folder: Path, *lines: str) -> None:
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")


def infer(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def cohort(*words: str) -> Result:
    return infer("--slides", "cohort.csv", "--out", "maps", *QUICK, *words)


def report(name: str = "cohort.run.json") -> dict[str, Any]:
    return json.loads((Path("maps") / name).read_text())


def statuses(**of: str) -> dict[str, str]:
    return {slide["name"]: slide["status"] for slide in report(**of)["slides"]}


def test_a_cohort_gives_what_each_slide_gives_alone(here: Path) -> None:
    done = cohort()
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [f"maps/{name}.h5ad" for name in NAMES]
    assert statuses() == dict.fromkeys(NAMES, "done")
    assert report()["counts"] == {"done": 3, "skipped": 0, "failed": 0, "left": 0}
    assert report()["status"] == "done"
    for name in NAMES:
        assert infer(f"{name}.png", "--spots", f"{name}.tsv", *QUICK).exit_code == 0
        alone, among = anndata.read_h5ad(f"{name}.h5ad"), anndata.read_h5ad(f"maps/{name}.h5ad")
        assert np.array_equal(alone.X, among.X)
        assert alone.obs.equals(among.obs)


def test_finished_slides_are_left_as_they_are(here: Path) -> None:
    write_table(here, "slide,spots", "A1.png,A1.tsv")
    assert cohort().exit_code == 0
    before = os.stat("maps/A1.h5ad")
    write_table(here, "slide,spots", "A1.png,A1.tsv", "A2.png,A2.tsv")
    again = cohort("--workers", "1")
    assert again.exit_code == 0, again.output
    assert statuses() == {"A1": "skipped", "A2": "done"}
    assert os.stat("maps/A1.h5ad").st_ino == before.st_ino
    assert again.stdout.split() == ["maps/A1.h5ad", "maps/A2.h5ad"]


def test_a_copied_slide_is_the_same_and_another_is_not(here: Path) -> None:
    write_table(here, "slide,spots", "A1.png,A1.tsv")
    assert cohort().exit_code == 0
    os.utime("A1.png", (1, 1))
    assert cohort().exit_code == 0
    assert statuses() == {"A1": "skipped"}
    shutil.copy("B1.png", "A1.png")
    refused = cohort()
    assert refused.exit_code == 3
    assert "made from another: the slide" in report()["slides"][0]["error"]["message"]
    assert cohort("--overwrite").exit_code == 0
    assert statuses() == {"A1": "done"}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda: None, ("--k", "3")),
        (lambda: Path("maps/A1.run.json").unlink(), ()),
        (lambda: os.truncate("maps/A1.h5ad", 9000), ()),
        (lambda: Path("A1.tsv").write_text("\n".join(Path("A1.tsv").read_text().split("\n")[:-3])), ()),
        (lambda: None, ("--csv",)),
    ],
    ids=["settings", "report", "map", "spots", "files"],
)  # fmt: skip
def test_what_is_not_the_same_is_neither_skipped_nor_replaced(
    here: Path, spoil, words: tuple[str, ...]
) -> None:
    write_table(here, "slide,spots", "A1.png,A1.tsv")
    assert cohort().exit_code == 0
    spoil()
    before = Path("maps/A1.h5ad").read_bytes()
    assert cohort(*words).exit_code == 3
    assert "--overwrite" in report()["slides"][0]["error"]["message"]
    assert Path("maps/A1.h5ad").read_bytes() == before
    assert cohort("--overwrite", *words).exit_code == 0
    assert statuses() == {"A1": "done"}
    assert cohort(*words).exit_code == 0
    assert statuses() == {"A1": "skipped"}


def test_a_slide_that_fails_is_recorded_and_the_others_go_on(here: Path) -> None:
    (here / "A2.png").write_bytes((here / "A2.png").read_bytes()[:500])
    write_table(here, "slide,spots", "gone.png,A1.tsv", "A1.png,A1.tsv", "A2.png,A2.tsv", "B1.png,B1.tsv")
    done = cohort()
    assert done.exit_code == 3
    assert statuses() == {"gone": "failed", "A1": "done", "A2": "failed", "B1": "done"}
    outcome = {slide["name"]: slide.get("error") for slide in report()["slides"]}
    assert "gone.png does not exist" in outcome["gone"]["message"] and outcome["gone"]["exit_code"] == 4
    assert "A2.png" in outcome["A2"]["message"] and outcome["A2"]["exit_code"] == 4
    assert report()["counts"] == {"done": 2, "skipped": 0, "failed": 2, "left": 0}
    assert "2 of 4 slides failed" in done.stderr and outcome["A2"]["message"] in done.stderr
    assert done.stdout.split() == ["maps/A1.h5ad", "maps/B1.h5ad"]
    assert sorted(path.name for path in Path("maps").glob("*.h5ad")) == ["A1.h5ad", "B1.h5ad"]


@pytest.mark.parametrize("name", ["n" * 300, "huge"], ids=["no file has such a name", "beyond memory"])
def test_the_first_slide_fails_alone_while_no_encoder_is_open(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from mclst.runtime.inference.loaded_model import LoadedModel
    from mclst.runtime.slide import picture

    monkeypatch.setattr(LoadedModel, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(picture, "MAX_DECODED_PX", 1000 * 1000)
    Image.new("L", (1001, 1000)).save(here / "huge.png")
    write_table(here, "name,slide,spots", f"first,{name}.png,A1.tsv", "A1,A1.png,A1.tsv")
    assert cohort().exit_code == 3
    assert statuses() == {"first": "failed", "A1": "done"}
    error = report()["slides"][0]["error"]
    assert error["traceback"] is None and f"{name}.png" in error["message"]
    assert error["exit_code"] == (6 if name == "huge" else 4)


def test_a_bank_that_opens_the_second_time_costs_one_slide(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mclst.runtime.bundle import bank, bundle
    from mclst.runtime.errors import BundleError

    whole, tries = bank.read_bank, []

    def stale_once(path: Path) -> Any:
        tries.append(path)
        if len(tries) == 1:
            raise BundleError(f"{path} cannot be read (stale file handle)")
        return whole(path)

    monkeypatch.setattr(bundle, "read_bank", stale_once)
    assert cohort().exit_code == 3
    assert statuses() == {"A1": "failed", "A2": "done", "B1": "done"}
    assert "stale file handle" in report()["slides"][0]["error"]["message"]


def test_the_cohorts_table_is_never_overwritten(here: Path) -> None:
    (here / "cohort.csv").rename(here / "A1.csv")
    before = (here / "A1.csv").read_bytes()
    refused = infer("--slides", "A1.csv", "--out", ".", *QUICK, "--csv", "--overwrite")
    assert refused.exit_code == 5 and "A1.csv is an input of this run and would be lost" in refused.stderr
    refused = infer("--slides", "A1.csv", "--out", "maps", *QUICK, "--json", "A1.csv", "--overwrite")
    assert refused.exit_code == 5 and "A1.csv is an input of this run" in refused.stderr
    assert (here / "A1.csv").read_bytes() == before and not Path("A1.h5ad").exists()


@pytest.mark.parametrize("lost", ["maps/A1.h5ad", "maps/B1.run.json", "maps/cohort.run.json", "B1.tsv"])
def test_the_json_replaces_nothing_that_the_cohort_reads_or_writes(lost: str, here: Path) -> None:
    refused = cohort("--json", lost, "--overwrite")
    assert refused.exit_code == 5 and lost.split("/")[-1] in refused.stderr
    assert not Path("maps/A1.h5ad").exists() and (here / "B1.tsv").read_text().startswith("x")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("maps/A1.png,A2.tsv,", ("--plot", "GENE1", "--json", "maps/A1.png")),
        ("maps/A1.genes.png,A2.tsv,", ()),
        ("A2.png,maps/A1.h5ad,", ()),
        ("A2.png,A2.tsv,maps/A1.geojson", ("--geojson",)),
    ],
    ids=["json", "slide", "spots", "region"],
)
@pytest.mark.parametrize("shard", ["1/2", "2/2"])
def test_what_one_slide_reads_no_other_replaces(
    here: Path, row: str, words: tuple[str, ...], shard: str
) -> None:
    write_table(here, "slide,spots,region,name", "A1.png,A1.tsv,,A1", f"{row},A2")
    (here / "maps").mkdir()
    victim = Path(next(cell for cell in row.split(",") if cell.startswith("maps/")))
    victim.write_text("precious")
    refused = infer(
        "--slides", "cohort.csv", "--out", "maps", "--no-html", "--shard", shard, *words, "--overwrite"
    )
    assert refused.exit_code == 5, refused.output
    assert f"{victim} is an input of this run and would be lost" in refused.stderr
    assert [path.name for path in (here / "maps").iterdir()] == [victim.name]
    assert victim.read_text() == "precious"


def test_a_defect_in_one_slide_is_told_with_its_traceback(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mclst.runtime.cohort.run as module

    def broken(bundle, job, *rest, **named):
        if job.slide.stem == "A2":
            raise KeyError("a defect")
        return whole(bundle, job, *rest, **named)

    whole = module.run_job  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "run_job", broken)
    assert cohort().exit_code == 3
    error = report()["slides"][1]["error"]
    assert error["exit_code"] == 1 and "KeyError" in error["message"] and "Traceback" in error["traceback"]
    assert statuses() == {"A1": "done", "A2": "failed", "B1": "done"}


def test_options_of_a_row_stand_before_the_command_line(here: Path) -> None:
    write_table(
        here,
        "Name;slide;spots;k;all_spots;grid;mpp;genes",
        "first;A1.png;A1.tsv;3;yes;;;",
        "second;A1.png;A1.tsv;;;;;",
        "dense;A1.png;;;;12.5;0.5;GENE1,GENE2",
    )
    done = cohort("--k", "5")
    assert done.exit_code == 0, (done.output, report())
    ks = {
        name: json.loads(Path(f"maps/{name}.run.json").read_text())["settings"]["k"]
        for name in ("first", "second")
    }
    assert ks == {"first": 3, "second": 5}
    assert Path("maps/dense.genes.ome.tif").is_file()


def test_shards_are_all_slides_once(here: Path) -> None:
    for part in (1, 2):
        assert cohort("--shard", f"{part}/2").exit_code == 0
    assert statuses(name="cohort.1-of-2.run.json") == {"A1": "done", "B1": "done"}
    assert statuses(name="cohort.2-of-2.run.json") == {"A2": "done"}
    assert cohort().exit_code == 0
    assert statuses() == dict.fromkeys(NAMES, "skipped")


@given(st.integers(0, 40), st.integers(1, 50))
def test_shards_part_any_cohort(slides: int, parts: int) -> None:
    jobs = {str(i): Job(Path(f"{i}.tif")) for i in range(slides)}
    shards = [shard_of(jobs, part, parts) for part in range(1, parts + 1)]
    assert sorted(name for shard in shards for name in shard) == sorted(jobs)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("image,spots", "A1.png,A1.tsv"), "no column 'slide'|column 'image' is unknown"),
        (("slide,spots,tint", "A1.png,A1.tsv,red"), "column 'tint' is unknown"),
        (("slide,spots", ",A1.tsv"), "line 2: column 'slide' is empty"),
        (("slide,spots", "A1.png,"), "line 2 gives neither spots nor grid"),
        (("slide,spots,grid", "A1.png,A1.tsv,50"), "line 2 gives both spots and grid"),
        (("slide,spots,mpp", "A1.png,A1.tsv,wide"), "line 2, column 'mpp'"),
        (("slide,spots,mpp", "A1.png,A1.tsv,nan"), "line 2, column 'mpp'"),
        (("slide,spots,max-bad-tiles", "A1.png,A1.tsv,1.5"), "line 2, column 'max-bad-tiles'"),
        (("slide,spots,rank", "A1.png,A1.tsv,l7"), "line 2, column 'rank'"),
        (("slide,spots,name", "A1.png,A1.tsv,../A1"), "line 2: '../A1' cannot name a map"),
        (("slide,spots,name", "A1.png,A1.tsv,.A1"), "cannot name a map"),
        (("slide,spots,genes", "A1.png,A1.tsv,GENE1"), "belong to grid"),
        (
            ("slide,spots", "A1.png,A1.tsv", "x/a1.tif,A1.tsv"),
            "line 3: the map would be named 'a1' as that of line 2",
        ),
        (("slide,spots", "cohort.png,A1.tsv"), "names a slide 'cohort'"),
        (("slide,spots", "A1.png,A1.tsv,x"), "line 2 has 3 cells"),
        (("slide,spots",), "a header and no rows"),
    ],
)
def test_a_table_that_is_not_right_is_refused_before_any_work(
    here: Path, lines: tuple[str, ...], words: str
) -> None:
    write_table(here, *lines)
    done = cohort()
    assert done.exit_code == 4, done.output
    assert any(word in done.stderr for word in words.split("|")), done.stderr
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1 and done.stdout == ""
    assert not Path("maps").exists() or not list(Path("maps").iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("A1.png", "--slides", "cohort.csv"),
        ("--slides", "cohort.csv", "--spots", "A1.tsv"),
        ("A1.png", "--spots", "A1.tsv", "--shard", "1/2"),
        ("--slides", "cohort.csv", "--shard", "0/2"),
        ("--slides", "cohort.csv", "--shard", "3/2"),
        ("--slides", "cohort.csv", "--shard", "half"),
        ("--slides", "cohort.csv", "--no-report"),
        (),
    ],
)
def test_wrong_usage(here: Path, words: tuple[str, ...]) -> None:
    done = infer(*words)
    assert done.exit_code == 2, done.output
    assert not Path("cohort").exists()


def test_the_report_as_data(here: Path) -> None:
    done = cohort("--json", "-", "-q", "--shard", "1/3")
    assert done.exit_code == 0 and done.stderr == ""
    assert json.loads(done.stdout)["slides"] == report("cohort.1-of-3.run.json")["slides"]


def test_an_encoder_that_does_not_open_ends_the_cohort(here: Path) -> None:
    done = cohort("--provider", "tensorrt")
    assert done.exit_code == 6
    assert report()["status"] == "stopped" and report()["counts"]["left"] == 3


@pytest.mark.slow
def test_a_stopped_cohort_goes_on(
    run_inputs: Path, tmp_path: Path, log_dir: Path, fork_server: ForkServer
) -> None:
    """Terminated by a signal after its first slide, in mid-run; the second start does the rest."""
    for name in ("mclst-bundle", "slide.tif", "spots.csv"):
        (tmp_path / name).symlink_to(run_inputs / name)
    rows = [f"s{i},slide.tif,spots.csv" for i in range(3)]
    write_table(tmp_path, "name,slide,spots", *rows)
    words = ("--slides", "cohort.csv", *QUICK, "-q")
    stop = f"""
import mclst.runtime.cohort.run as module
whole = module.run_job
def stopping(bundle, job, *rest, **named):
    if job.map_path.stem == "s1":
        os.kill(os.getpid(), {int(signal.SIGTERM)})
    return whole(bundle, job, *rest, **named)
module.run_job = stopping
"""
    stopped = fork_server.run(tmp_path, *words, log_dir=log_dir, before=stop)
    assert stopped.code == 143, stopped.stderr
    assert "the same command resumes" in stopped.stderr
    outcome = json.loads((tmp_path / "cohort" / "cohort.run.json").read_text())
    assert (outcome["status"], outcome["counts"]["done"], outcome["counts"]["left"]) == ("stopped", 1, 2)
    again = fork_server.run(tmp_path, *words, log_dir=log_dir)
    assert again.code == 0, again.stderr
    outcome = json.loads((tmp_path / "cohort" / "cohort.run.json").read_text())
    assert [slide["status"] for slide in outcome["slides"]] == ["skipped", "done", "done"]
    maps = [anndata.read_h5ad(tmp_path / "cohort" / f"s{i}.h5ad").X for i in range(3)]
    assert np.array_equal(maps[0], maps[1]) and np.array_equal(maps[0], maps[2])


DIES_AT_A_RENAME = """
from mclst.runtime.run.hashes import SlideHash
SlideHash.ready = False
whole, calls = os.replace, 0
def dying(*paths, **options):
    global calls
    calls += 1
    if calls == {call} and not {after}:
        os._exit(99)
    whole(*paths, **options)
    if calls == {call}:
        os._exit(99)
os.replace = dying
"""
"""The hash is ready only after the last row, so nothing is journaled before."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_run_that_dies_as_it_publishes_is_finished_by_the_next(
    after: bool, run_inputs: Path, tmp_path: Path, log_dir: Path, fork_server: ForkServer
) -> None:
    for name in ("mclst-bundle", "slide.tif", "spots.csv"):
        (tmp_path / name).symlink_to(run_inputs / name)
    write_table(tmp_path, "name,slide,spots", "s0,slide.tif,spots.csv")
    words = ("--slides", "cohort.csv", "--no-html", "-q")
    kept = {"s0.h5ad", "s0.run.json", "s0.genes.png", "cohort.run.json"}
    codes: list[int] = []
    while not codes or codes[-1] == 99:
        shutil.rmtree(tmp_path / "cohort", ignore_errors=True)
        before = DIES_AT_A_RENAME.format(call=len(codes) + 1, after=after)
        codes.append(fork_server.run(tmp_path, *words, log_dir=log_dir, before=before).code)
        again = fork_server.run(tmp_path, *words, log_dir=log_dir)
        assert again.code == 0, (codes, again.stderr)
        assert {path.name for path in (tmp_path / "cohort").iterdir()} == kept, codes
    assert codes[-1] == 0 and len(codes) > 4, "picture, report, map and the cohort's report are renamed"


def task_of_nextflow(shard: int, **params: object) -> str:
    """The shell script of a task of docs/cohort.nf, as Groovy makes it of the string there."""
    source = (Path(__file__).parents[3] / "docs" / "cohort.nf").read_text()
    (script,) = re.findall(r'script:\n\s+"""\n(.*?)"""', source, re.DOTALL)
    known = {"shard": shard, "task.cpus": 2, **{f"params.{name}": value for name, value in params.items()}}
    script = re.sub(r"(?<!\\)\$\{([\w.]+)\}", lambda match: str(known[match[1]]), script.replace("\\\n", ""))
    return script.replace("\\$", "$")


def run_as_nextflow(script: str, folder: Path, commands: Path) -> int:
    """`bash -ue`, in a folder of the task's own."""
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-ue", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        timeout=3000,
        check=False,
    ).returncode


@pytest.mark.slow
def test_the_script_of_the_documented_nextflow_process(run_inputs: Path, tmp_path: Path) -> None:
    here = tmp_path / "a cohort"
    (here / "work").mkdir(parents=True)
    write_table(
        here,
        "name,slide,spots",
        *(f"{n},{run_inputs}/{n}.tif,{run_inputs}/spots.csv" for n in ("slide", "no")),
    )
    script = task_of_nextflow(
        1, slides=here / "cohort.csv", out=here / "maps", bundle=run_inputs / "mclst-bundle", shards=1
    )
    assert run_as_nextflow(script, here / "work", Path(sys.executable).parent) == 0
    assert [path.stem for path in (here / "maps").glob("*.h5ad")] == ["slide"]
    outcome = json.loads((here / "maps" / "cohort.run.json").read_text())
    assert outcome["counts"] == {"done": 1, "skipped": 0, "failed": 1, "left": 0}


@pytest.mark.parametrize(("code", "left"), [(0, 0), (3, 0), (4, 4), (6, 6), (137, 137), (143, 143)])
def test_what_decides_about_a_retry_reaches_nextflow(tmp_path: Path, code: int, left: int) -> None:
    command = tmp_path / "mclst-infer"
    command.write_text(f"#!/bin/sh\nexit {code}\n")
    command.chmod(0o755)
    script = task_of_nextflow(1, slides="c.csv", out="maps", bundle="b", shards=2)
    assert run_as_nextflow(script, tmp_path, tmp_path) == left


@pytest.mark.slow
def test_the_documented_slurm_array_does_all_slides(run_inputs: Path, tmp_path: Path) -> None:
    """Started as SLURM starts its tasks: a process each, told its number and how many there are."""
    for name in ("mclst-bundle", "slide.tif", "spots.csv"):
        (tmp_path / name).symlink_to(run_inputs / name)
    write_table(tmp_path, "name,slide,spots", *(f"s{i},slide.tif,spots.csv" for i in range(2)))
    script = Path(__file__).parents[3] / "docs" / "cohort.slurm"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for task in (1, 2):
        slurm = {
            "PATH": path,
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_ARRAY_TASK_COUNT": "2",
            "SLURM_CPUS_PER_TASK": "2",
        }
        done = subprocess.run(
            ["bash", script, "cohort.csv", "maps", "--csv"],
            cwd=tmp_path,
            env={**os.environ, **slurm},
            capture_output=True,
            text=True,
            timeout=3000,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in (tmp_path / "maps").glob("*.h5ad")) == ["s0", "s1"]
    assert sorted(path.stem for path in (tmp_path / "maps").glob("*.csv")) == ["s0", "s1"]
