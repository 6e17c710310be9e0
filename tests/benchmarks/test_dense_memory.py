"""`mclst-bench memory`: whole runs, a process each."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image
from synthetic_slides import tissue

from mclst.benchmarks.cli import main
from mclst.benchmarks.memory.measure import grid_of, measure_in_subprocess, synthetic_bundle
from mclst.runtime.errors import InputError, ResourceError, SlideError
from mclst.runtime.resources import peak_bytes
from mclst.runtime.slide.open import open_slide


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    tifffile.imwrite(
        tmp_path / "slide.tif", tissue(300, 420), photometric="rgb", tile=(64, 64), metadata=None
    )
    return tmp_path / "slide.tif"


def test_the_command_measures_and_draws(slide: Path, tmp_path: Path) -> None:
    words = ["memory", str(slide), "--n", "100", "--n", "400", "--genes", "7"]
    done = CliRunner().invoke(
        main, [*words, "--json", str(tmp_path / "m.json"), "--plot", str(tmp_path / "m.png")]
    )
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "m.json").read_text())
    assert [round(result["tiles"], -2) for result in document["results"]] == [100, 400]
    for result in document["results"]:
        assert result["genes"] == 7
        assert 50 < result["open_mib"] <= result["spots_mib"] <= result["peak_mib"] < 4000
    assert Image.open(io.BytesIO((tmp_path / "m.png").read_bytes())).size[0] > 500
    assert "peak MiB" in done.stderr and {path.name for path in tmp_path.iterdir()} == {
        "slide.tif",
        "m.json",
        "m.png",
    }


def test_the_peak_is_the_most_that_was_ever_resident() -> None:
    before = peak_bytes() >> 20
    np.ones(80 << 17).sum()  # 80 MiB of float64, freed at once
    assert peak_bytes() >> 20 >= before and peak_bytes() >> 20 >= 80


def test_a_grid_has_about_the_requested_number_of_tiles(slide: Path) -> None:
    with open_slide(slide) as opened:
        for n in (10, 333, 5000):
            assert abs(len(grid_of(opened, n).spots) - n) <= 0.25 * n


def test_what_cannot_be_measured_is_refused(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CliRunner().invoke(main, ["memory", "absent.tif"]).exit_code == 4
    with pytest.raises(InputError, match="/no bundle is not a bundle; make one"):
        measure_in_subprocess(slide, tmp_path / "no bundle", 100, 1, tmp_path)
    with open_slide(slide) as opened, pytest.raises(SlideError, match="too small for about 3"):
        grid_of(opened, 3)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ResourceError, match=r"mclst\[export\]"):
        synthetic_bundle(tmp_path / "bundle", 5)


def test_the_documented_table_is_the_committed_run() -> None:
    root = Path(__file__).resolve().parents[2]
    run = json.loads((root / "benchmarks" / "results" / "memory-cpu.json").read_text())
    text = (root / "docs" / "benchmarks" / "memory.md").read_text()
    peaks = " | ".join(f"{result['peak_mib']:,.0f}" for result in run["results"])
    assert f"| peak of the whole run, MiB | {peaks} |" in text
