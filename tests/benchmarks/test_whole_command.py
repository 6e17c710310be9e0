"""`mclst-bench command`: whole processes give the same expression, and figures follow from their times."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from small_model import Small

from mclst.benchmarks.cli import main
from mclst.benchmarks.contenders.slide_runs import PUBLISHED
from mclst.benchmarks.harness.measure import time_interleaved
from mclst.benchmarks.whole_command import measure as whole_command
from mclst.benchmarks.whole_command.measure import Process, evict, mclst_process, measure, peers
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.errors import ResourceError
from mclst.sections.tables.spots import read_spots


def test_the_peers_predict_what_mclst_infer_does(small: Small, exported_bundle: Path, tmp_path: Path) -> None:
    bundle, spots = open_bundle(exported_bundle), read_spots(small.spots)
    others, absent = peers(bundle, small.slide, small.spots, spots, small.ckpt, tmp_path, 1)
    here = {process.name: process for process in others}
    assert "plain openvino int8" in {entry["name"] for entry in absent}, "the bundle has none"
    ours = mclst_process(
        "mclst fp32", small.slide, small.spots, exported_bundle, tmp_path, tmp_path, ("--precision", "fp32")
    )
    for process in (ours, here[PUBLISHED], here["plain onnxruntime fp32"]):
        process()
        assert process.encode_s[0] > 0
        np.testing.assert_allclose(process.expression(), ours.expression(), atol=1e-4)
    assert list(ours.phases[0]) == ["start", "open", "stream", "publish"] and min(ours.phases[0].values()) > 0
    assert ours.chosen == "cpu fp32" and ours.out.with_suffix(".genes.png").is_file()
    assert here[PUBLISHED].out.with_suffix(".png").is_file(), "the notebook draws, too"


def test_the_command_shows_both_caches(
    small: Small, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def process(name: str, folder: Path, **options: Any) -> Process:
        spots = len(read_spots(small.spots))
        np.save(folder / f"{name}.npy", np.random.default_rng(0).normal(size=(spots, 12)))
        return script(folder, name, "print('{\"encode_s\": 0.001}')")

    monkeypatch.setattr(whole_command, "mclst_process", process)
    monkeypatch.setattr(whole_command, "peers", lambda *arguments: ([], [{"name": "peer", "why": "absent"}]))
    words = ["command", small.slide, "--spots", small.spots, "--bundle", small_bundle, "--repeats", "2"]
    done = CliRunner().invoke(main, [*map(str, words), "--json", str(tmp_path / "r.json")])
    assert done.exit_code == 0 and "page cache cold" in done.stderr and "absent" in done.stderr, done.output
    document = json.loads((tmp_path / "r.json").read_text())
    assert list(document["results"]) == ["warm", "cold"] and document["verdict"] in ("quiet", "busy")
    for result in document["results"].values():
        assert [entry["name"] for entry in result["contenders"]] == [
            "mclst auto",
            "mclst fp32",
            "mclst first",
        ]
        for entry in result["contenders"]:
            wall, encode = entry["samples"]["wall_s"], entry["samples"]["encode_s"]
            assert len(wall) == len(encode) == 2 and entry["samples"]["cpu_s"][0] > 0.005
            assert entry["overhead_s"]["median"] == pytest.approx(np.median(wall) - 0.001)


def script(folder: Path, name: str, code: str) -> Process:
    return Process(name, [sys.executable, "-c", code], folder / f"{name}.npy", False, folder)


@dataclass
class OnPlayedClock(Process):
    """Takes some seconds of a clock that only such processes move on."""

    now = 0.0
    seconds: float = 0.0

    def __call__(self) -> None:
        super().__call__()
        OnPlayedClock.now += self.seconds


def test_ratios_are_of_processes_that_took_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = partial(time_interleaved, wall_clock=lambda: OnPlayedClock.now)
    monkeypatch.setattr(whole_command, "time_interleaved", clock)
    code = "import json; print('noise'); print(json.dumps({'encode_s': 0}))"
    processes = []
    for name, value, seconds in (("fast", 1.0, 0.5), ("slow", 2.0, 2.0)):
        np.save(tmp_path / f"{name}.npy", np.full((5, 3), value, np.float32) * np.arange(3))
        plain = script(tmp_path, name, code)
        processes.append(OnPlayedClock(**vars(plain), seconds=seconds))
    kept = tmp_path / "kept"
    kept.write_bytes(b"x" * 4096)
    result, expression = measure(processes, tiles=5, rounds=2, cold=(tmp_path,))
    fast, slow = result["contenders"]
    assert slow["wall_to_first"] == pytest.approx(4) and fast["wall_to_first"] == 1
    assert slow["overhead_s"]["median"] == pytest.approx(2) and slow["samples"]["cpu_s"][0] > 0
    assert slow["equal_to_first"]["max_abs"] == 2 and expression["slow"][0, 2] == 4
    evict([tmp_path / "missing"])
    assert kept.read_bytes() == b"x" * 4096


def test_a_process_that_fails_ends_the_measurement_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"broken failed with status 3 \(no picture\)"):
        script(tmp_path, "broken", "import sys; sys.stderr.write('no picture'); sys.exit(3)")()
