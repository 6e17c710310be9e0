"""`mclst-bench load` counts what the server counts, drops no request, and notices answers to other tiles."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_server import PATIENCE, FakeServer, hasten_patience

from mclst.benchmarks.serving import measure
from mclst.benchmarks.serving.command import load
from mclst.runtime.serving import flow_control as flow

pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")


@pytest.fixture(scope="module", params=("http", "grpc"))
def fake(request: pytest.FixtureRequest, run_inputs: Path) -> Iterator[FakeServer]:
    with FakeServer(run_inputs / "mclst-bundle", request.param) as server:
        yield server


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "FIRST_PAUSE_S", 0.01)


def bench(fake: FakeServer, *words: str) -> Result:
    fake.n_requests = 0
    return CliRunner().invoke(load, ["--server", fake.url, *words])


def test_every_request_is_counted(fake: FakeServer, tmp_path: Path) -> None:
    turned_away = []

    def trouble(number: int) -> str:
        if number % 5 == 4:
            turned_away.append(number)
            return "503"
        while number == 40 and fake.at_once < 2:  # the second of the four clients comes
            time.sleep(0.001)
        return "slow 0.002"

    fake.trouble, fake.most_at_once = trouble, 0
    out, plot = tmp_path / "load.json", tmp_path / "load.png"
    words = ("--clients", "1", "--clients", "4", "--requests", "20", "--batch", "3", "--warm-up", "1")
    done = bench(fake, *words, "--json", str(out), "--plot", str(plot))
    assert done.exit_code == 0, done.stderr
    assert plot.read_bytes().startswith(b"\x89PNG") and "clients" in done.stderr
    results = json.loads(out.read_text())["results"]
    assert [result["concurrency"] for result in results] == [1, 4]
    warm_up = 1 + 4
    assert fake.n_requests == 2 * 20 + warm_up + len(turned_away)
    counted = sum(result["rejected"] for result in results)
    assert 0 < counted <= len(turned_away) and all(result["lost"] == 0 for result in results)
    assert 1 < fake.most_at_once <= 4
    for result in results:
        samples = result["samples"]["request_s"]
        assert len(samples) == 20 and min(samples) >= 0.002
        assert result["latency_s"]["percentiles"]["p50"]["s"] == pytest.approx(np.percentile(samples, 50))
        assert result["tiles_per_s"] == pytest.approx(60 / result["wall_s"])


def test_answers_to_other_tiles_are_noticed(fake: FakeServer) -> None:
    fake.trouble = lambda number: "of other tiles" if number == 9 else ""
    done = bench(fake, "--clients", "2", "--requests", "20", "-q")
    assert done.exit_code == 4 and "other expression for the same tiles" in done.stderr


def test_a_server_that_answers_nothing_ends_it(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    turned_away = Event()

    def trouble(number: int) -> str:
        turned_away.set()
        return "503"

    fake.trouble = trouble
    hasten_patience(measure, turned_away, monkeypatch)
    done = bench(fake, "--clients", "2", "--requests", "4", *PATIENCE, "-q")
    assert done.exit_code == 6 and "no more for now" in done.stderr


def test_more_tiles_than_the_server_takes(fake: FakeServer) -> None:
    assert bench(fake, "--batch", "9").exit_code == 4
