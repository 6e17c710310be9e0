"""`mclst-bench tiles`: every reader reads the same tiles."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from synthetic_slides import cut, write_layout

from mclst.benchmarks.cli import main
from mclst.benchmarks.reading.measure import tile_corners
from mclst.benchmarks.reading.readers import MAY_CRASH, READERS, survives


@pytest.mark.parametrize("name", sorted(set(READERS) - MAY_CRASH))
@pytest.mark.parametrize("workers", [1, 3])
def test_each_reader_gives_the_pixels_of_the_slide(tmp_path: Path, name: str, workers: int) -> None:
    module, read = READERS[name]
    pytest.importorskip(module)
    path, (image, *_) = write_layout(tmp_path, "tiled deflate")
    corners = tile_corners(image.shape[1], image.shape[0], 50, 30, "random")
    got = {}

    def on_tile(row: int, tile: np.ndarray) -> None:
        got[row] = np.array(tile)

    read(path, corners, 50, workers, on_tile)
    assert sorted(got) == list(range(30))
    for row, (x, y) in enumerate(corners.tolist()):
        assert np.array_equal(got[row], cut(image, x, y, 50, 50))


def test_corners_are_on_the_slide_and_dense_ones_side_by_side() -> None:
    dense = tile_corners(1000, 700, 100, 12, "dense")
    assert [tuple(corner) for corner in dense.tolist()] == [
        (100 * (i % 3), 100 * (i // 3)) for i in range(12)
    ]
    assert len(tile_corners(1000, 700, 100, 1000, "dense")) == 70
    anywhere = tile_corners(101, 300, 100, 500, "random")
    assert set(anywhere[:, 0].tolist()) == {0, 1} and anywhere[:, 1].max() <= 200
    with pytest.raises(ValueError, match="holds no tile"):
        tile_corners(99, 300, 100, 5, "dense")


def test_the_command_says_who_equals_whom(tmp_path: Path) -> None:
    path, _ = write_layout(tmp_path, "tiled deflate")
    words = ["tiles", str(path), "--n", "20", "--size", "40", "--repeats", "2", "--workers", "1"]
    done = CliRunner().invoke(main, [*words, "--json", str(tmp_path / "t.json")])
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "t.json").read_text())
    assert [(r["order"], r["workers"], r["tiles"]) for r in document["results"]] == [
        ("dense", 1, 20),
        ("random", 1, 20),
    ]
    for result in document["results"]:
        assert set(result["readers"]) | set(result["skipped"]) == set(READERS)
        for reader in result["readers"].values():
            assert (
                reader["equal_to_mclst"] == result["tiles"] and reader["tiles_per_second"]["wall"]["min"] > 0
            )
    assert "mclst" in done.stderr and "per CPU s" in done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [(("absent.tif",), 4), (("SLIDE", "--size", "4000"), 4), (("SLIDE", "--workers", "x"), 2)],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, words: tuple[str, ...], code: int) -> None:
    path, _ = write_layout(tmp_path, "tiled deflate")
    done = CliRunner().invoke(main, ["tiles", *(str(path) if word == "SLIDE" else word for word in words)])
    assert done.exit_code == code and "Traceback" not in done.stderr


def test_a_reader_that_crashes_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The subprocess really crashes, in a module that replaces a fragile reader."""
    path, _ = write_layout(tmp_path, "tiled deflate")
    (tmp_path / "cucim.py").write_text("import ctypes; ctypes.string_at(0)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert not survives("cuCIM", path, 40) and survives("mclst", path, 40)


def test_the_documented_table_is_the_committed_run() -> None:
    root = Path(__file__).resolve().parents[2]
    run = json.loads((root / "benchmarks" / "results" / "tiles-cpu.json").read_text())
    text = (root / "docs" / "benchmarks" / "reading.md").read_text()
    results = [result["readers"] for result in run["results"]]
    for name in results[0]:
        rates = [readers[name]["tiles_per_second"] for readers in results]
        cells = [f"{rate['wall']['median']:,.0f} ({rate['cpu']['median']:,.0f})" for rate in rates]
        assert f"| {name} | {' | '.join(cells)} |" in text
