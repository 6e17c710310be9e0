"""Cohorts on a real Ray cluster whose workers and a node die: nothing is lost or done twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from click.testing import CliRunner

from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.cli.infer import main
from mclst.runtime.cohort.cluster import _private_cluster
from mclst.runtime.cohort.cluster_worker import Task, Worker
from mclst.runtime.cohort.run import SlideOutcome
from mclst.runtime.expression_map.parts import SlidePart
from mclst.runtime.providers.choice import EncoderChoice
from mclst.runtime.report.files import Files
from mclst.runtime.run.job import Job
from mclst.runtime.run.options import RunOptions

pytest.importorskip("ray")
SCRIPT = Path(__file__).parents[2] / "support" / "ray_cluster.py"
SECONDS = 3000


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """Command that runs another in a network of its own."""
    command = ["unshare", "--net"] if os.getuid() == 0 else ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here, so Ray would listen beyond loopback")
    return command


@pytest.fixture(scope="module")
def ran(
    run_inputs: Path, tmp_path_factory: pytest.TempPathFactory, alone: list[str]
) -> tuple[Path, dict[str, Any]]:
    """The folder of the cohorts, and what the two scripts tell of them; they wait more than they compute."""
    folder = tmp_path_factory.mktemp("cluster")
    for name in ("mclst-bundle", "slide.tif", "spots.csv"):
        (folder / name).symlink_to(run_inputs / name)
    for name, slides in (("few", 3), ("cohort", 10)):
        rows = "".join(f"s{i},slide.tif,spots.csv\n" for i in range(slides))
        (folder / f"{name}.csv").write_text("name,slide,spots\n" + rows)

    def run(faults: str) -> dict[str, Any]:
        command = [*alone, sys.executable, str(SCRIPT), faults]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return result

    with ThreadPoolExecutor(2) as pool:
        deaths, hangs = pool.map(run, ("deaths", "hangs"))
    return folder, {**deaths, **hangs, "interfaces": deaths["interfaces"] + hangs["interfaces"]}


def test_m7_no_other_user_reaches_a_cluster_of_this_machine(alone: list[str]) -> None:
    done = subprocess.run(
        [*alone, sys.executable, str(SCRIPT.with_name("ray_auto.py"))],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    if seen["address"] != "10.9.8.7":
        pytest.skip("ip is not installed, so this network has no second address")
    assert seen["answer"] == 42 and seen["folder"] and not seen["left"]
    assert "ran" not in seen["joined"] and "InvalidAuthToken" in seen["refusal"]
    assert seen["mode"] == 0o700 and seen["readable"] == []
    assert set(seen["listening"]) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, seen["listening"]


@pytest.mark.parametrize("base", ["/tmp", "/" + 28 * "d", "/scratch/users/someone/jobs/1234567"])
def test_m7_the_path_of_a_socket_is_not_too_long(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Folder(tempfile.TemporaryDirectory):  # type: ignore[type-arg]
        def __init__(self, *, dir: str, **options: Any) -> None:
            self.dir = dir
            super().__init__(**options)

        def __enter__(self) -> str:
            return f"{self.dir}/mr-{8 * 'x'}"

    monkeypatch.setattr(tempfile, "TemporaryDirectory", Folder)
    monkeypatch.setenv("RAY_TMPDIR", base)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "token")
    with _private_cluster() as options:
        socket = f"{options['_temp_dir']}/session_2026-11-28_05-30-44_946056_4194304/sockets/plasma_store"
    assert len(socket) <= 107 and socket.startswith((base, "/tmp/"))


@pytest.fixture(scope="module")
def expected(run_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, np.ndarray]:
    """The expression of the slide by one process without a cluster, by batch size."""
    outcomes = {}
    for batch in (16, 4):
        out = tmp_path_factory.mktemp("alone") / "map.h5ad"
        words = [
            run_inputs / "slide.tif",
            "--spots",
            run_inputs / "spots.csv",
            "--bundle",
            run_inputs / "mclst-bundle",
        ]
        options = ["--out", out, "--no-picture", "--no-html", "--batch-size", batch]
        assert CliRunner().invoke(main, [str(word) for word in (*words, *options)]).exit_code == 0
        outcomes[batch] = anndata.read_h5ad(out).X
    return outcomes


def report(folder: Path, name: str) -> dict[str, Any]:
    outcomes: dict[str, Any] = json.loads((folder / name / "cohort.run.json").read_text())
    return outcomes


def assert_all_done(ran: tuple[Path, dict[str, Any]], name: str, slides: int, expected: np.ndarray) -> None:
    """Each slide is once in the report and on stdout; each map is as one process makes it."""
    folder, runs = ran
    assert runs[name]["code"] == 0, runs[name]["stderr"]
    names = sorted(f"s{i}" for i in range(slides))
    assert sorted(slide["name"] for slide in report(folder, name)["slides"]) == names
    assert {slide["status"] for slide in report(folder, name)["slides"]} == {"done"}
    assert sorted(runs[name]["stdout"].split()) == sorted(f"{name}/{slide}.h5ad" for slide in names)
    for slide in names:
        assert np.array_equal(anndata.read_h5ad(folder / name / f"{slide}.h5ad").X, expected)
    kept = {f"{slide}.{end}" for slide in names for end in ("h5ad", "run.json")} | {"cohort.run.json"}
    assert {path.name for path in (folder / name).iterdir()} == kept


def test_only_loopback_is_there(ran: tuple[Path, dict[str, Any]]) -> None:
    assert ran[1]["interfaces"] == ["lo", "lo"]


def test_a_worker_killed_costs_one_attempt(
    ran: tuple[Path, dict[str, Any]], expected: dict[int, np.ndarray]
) -> None:
    assert (ran[0] / "killed").exists()
    assert_all_done(ran, "worker", 10, expected[16])
    attempts = {slide["name"]: slide["attempts"] for slide in report(ran[0], "worker")["slides"]}
    assert attempts.pop("s4") == 2 and list(attempts.values()) == [1] * 9


def test_a_node_killed_costs_what_it_was_at(
    ran: tuple[Path, dict[str, Any]], expected: dict[int, np.ndarray]
) -> None:
    assert (ran[0] / "node-gone").exists() and ran[1]["nodes left"] == 1
    assert_all_done(ran, "node", 10, expected[16])
    attempts = [slide["attempts"] for slide in report(ran[0], "node")["slides"]]
    assert max(attempts) <= 2 and sum(attempts) <= 12


def test_a_slide_that_kills_its_worker_is_tried_three_times(
    ran: tuple[Path, dict[str, Any]], expected: dict[int, np.ndarray]
) -> None:
    folder, runs = ran
    assert runs["poison"]["code"] == 3
    outcomes = {slide["name"]: slide for slide in report(folder, "poison")["slides"]}
    assert {name: slide["status"] for name, slide in outcomes.items()} == {
        "s0": "done",
        "s1": "failed",
        "s2": "done",
    }
    assert (
        outcomes["s1"]["attempts"] == 3 and "its worker ended 3 times" in outcomes["s1"]["error"]["message"]
    )
    assert "1 of 3 slides failed" in runs["poison"]["stderr"]
    assert np.array_equal(anndata.read_h5ad(folder / "poison" / "s2.h5ad").X, expected[16])


def test_a_slide_that_hangs_costs_an_attempt_at_each_deadline(
    ran: tuple[Path, dict[str, Any]], expected: dict[int, np.ndarray]
) -> None:
    folder, runs = ran
    assert runs["hung"]["code"] == 3, runs["hung"]["stderr"]
    outcomes = {slide["name"]: slide for slide in json.loads((folder / "hung.json").read_text())["slides"]}
    assert {name: slide["status"] for name, slide in outcomes.items()} == {
        "s0": "done",
        "s1": "failed",
        "s2": "done",
    }
    error = outcomes["s1"]["error"]["message"]
    assert outcomes["s1"]["attempts"] == 2 and "it took longer than --deadline 30 s" in error
    assert runs["hung"]["seconds"] >= 2 * (30 + 20)  # by the clock of the hanging slide
    # The workers that were ended hold nothing back: the same command does what is left.
    assert runs["hung again"]["code"] == 0, runs["hung again"]["stderr"]
    statuses = {slide["name"]: slide["status"] for slide in report(folder, "hung")["slides"]}
    assert statuses == {"s0": "skipped", "s1": "done", "s2": "skipped"}
    for slide in statuses:
        assert np.array_equal(anndata.read_h5ad(folder / "hung" / f"{slide}.h5ad").X, expected[16])
    assert not list((folder / "hung").glob(".*"))


def test_slides_in_parts_are_merged_to_the_same_map(
    ran: tuple[Path, dict[str, Any]], expected: dict[int, np.ndarray]
) -> None:
    assert_all_done(ran, "parts", 3, expected[4])
    one = json.loads((ran[0] / "parts" / "s0.run.json").read_text())
    assert one["run"]["spots"] == 600 and one["run"]["failed"] == []
    # What was encoded by the run that merged: nothing.
    assert one["run"]["seconds"]["encode"] == 0


def test_a_map_finished_by_a_worker_that_died_is_done_and_tidied_up(run_inputs: Path, tmp_path: Path) -> None:
    """Without Ray: the second attempt at merging a slide whose first ended after publishing."""
    options = RunOptions(provider="cpu", picture=False, files=Files(html=False))
    job = Job(
        run_inputs / "slide.tif", tmp_path / "map.h5ad", spots=run_inputs / "spots.csv", options=options
    )
    sha256 = open_bundle(run_inputs / "mclst-bundle").sha256
    worker = Worker(run_inputs / "mclst-bundle", sha256, None, 1, EncoderChoice("cpu", "fp32"))
    assert worker.open() is None
    merge = Task("map", job, SlidePart(2))
    worker.run(Task("map", job, SlidePart(3, 2)))  # left by a run with another --shard-tiles
    for part in (0, 1):
        worker.run(Task("map", job, SlidePart(2, part)))
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    first = worker.run(merge)
    assert isinstance(first, SlideOutcome) and first.status == "done"
    assert all("another stain" in note for note in first.notes)
    for name, content in left.items():
        (tmp_path / name).write_bytes(content)
    again = worker.run(merge.again)
    assert isinstance(again, SlideOutcome) and (again.status, again.spots, again.attempts) == ("done", 600, 2)
    assert again.notes == ("an earlier worker finished its map before it died",)
    assert {path.name for path in tmp_path.iterdir()} == {"map.h5ad", "map.run.json"}
    assert worker.run(Task("map", job)).status == "skipped"  # type: ignore[union-attr]
    splitting = Worker(run_inputs / "mclst-bundle", sha256, 100, 1, EncoderChoice("cpu", "fp32"))
    assert splitting.open() is None
    other = replace(job, options=replace(options, retrieval={"k": 3}))
    refused = splitting.run(Task("map", other))  # before its parts cost anything
    assert isinstance(refused, SlideOutcome) and "add --overwrite" in refused.error
    assert splitting.run(Task("map", replace(other, options=replace(other.options, overwrite=True)))) == 6


@pytest.mark.parametrize(
    "words",
    [
        ("a.tif", "--spots", "s.csv", "--cluster", "auto"),
        ("--slides", "c.csv", "--cores", "2"),
        ("--slides", "c.csv", "--shard-tiles", "100"),
        ("--slides", "c.csv", "--deadline", "100"),
        ("--slides", "c.csv", "--cluster", "auto", "--deadline", "0"),
    ],
)
def test_wrong_usage(words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(main, list(words)).exit_code == 2
