"""`mclst-bench scale`: its made-up inputs and a small run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy
import tifffile
from click.testing import CliRunner

from mclst.benchmarks.cli import main
from mclst.benchmarks.memory.measure import synthetic_bundle
from mclst.benchmarks.scale import measure
from mclst.benchmarks.scale.inputs import ENTRIES_PER_BIN, write_bins, write_cells, write_slide
from mclst.sections.tables.spots import read_spots

pytest.importorskip("pyarrow")


def test_the_slide_is_a_pyramid_of_tissue(tmp_path: Path) -> None:
    with tifffile.TiffFile(write_slide(tmp_path / "slide.tif", 4500)) as tif:
        shapes = [page.shape for page in tif.pages]
        assert shapes == [(4500, 4500, 3), (1125, 1125, 3)]
        picture = tif.pages[1].asarray()
    assert picture.std() > 10 and picture.min() < 150 < picture.max()


def test_cells_lie_on_the_slide(tmp_path: Path) -> None:
    spots = read_spots(write_cells(tmp_path / "cells.geojson", 150, 4000))
    assert len(spots) == len(np.unique(spots.xy_px, axis=0)) == 150
    assert (spots.xy_px > 0).all() and (spots.xy_px < 4000).all()


def test_bins_are_in_space_rangers_layout(tmp_path: Path) -> None:
    square = write_bins(tmp_path, 24) / "binned_outputs/square_002um"
    data = scanpy.read_10x_h5(square / "filtered_feature_bc_matrix.h5")
    positions = pd.read_parquet(square / "spatial/tissue_positions.parquet")
    assert data.obs_names.tolist() == positions.barcode.tolist() and data.n_obs == 576
    assert data.obs_names[25] == "s_002um_00001_00001-1"
    assert positions.iloc[25][["array_row", "array_col"]].tolist() == [1, 1]
    assert (np.diff(data.X.indptr) == ENTRIES_PER_BIN).all()
    assert all(len(set(data.X[row].indices)) == ENTRIES_PER_BIN for row in range(0, 576, 50))


def test_the_command_pools_bins_in_a_process_of_its_own(tmp_path: Path) -> None:
    words = ["scale", "--cells", "0", "--bins", "1600", "--json", str(tmp_path / "s.json")]
    done = CliRunner().invoke(main, [*words, "--folder", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]
    bins = json.loads((tmp_path / "s.json").read_text())["bins"]
    assert bins["bins"] == 1600 and bins["spots"] == 25 and bins["counts"] >= 1600 * ENTRIES_PER_BIN
    assert bins["peak_mib"] >= bins["open_mib"] > 0


def test_a_run_over_cells_writes_map_page_and_outlines(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "slide.tif", 2048)
    cells = write_cells(tmp_path / "cells.geojson", 90, 2048)
    bundle = synthetic_bundle(tmp_path / "bundle", 5, tile_px=16)
    result = measure.predict_cells(str(slide), str(bundle), str(cells), 2, str(tmp_path / "map.h5ad"))
    assert result["cells"] == 90 and result["genes"] == 5 and result["tiles_per_second"] > 0
    outlines = json.loads((tmp_path / "map.geojson").read_text())["features"]
    given = json.loads(cells.read_text())["features"]
    assert [f["geometry"] for f in outlines] == [f["geometry"] for f in given]
    assert outlines[0]["properties"]["classification"] == {"name": "Tumor"}


def test_the_documented_numbers_are_the_committed_runs() -> None:
    root = Path(__file__).resolve().parents[2]
    text = (root / "docs" / "benchmarks" / "memory.md").read_text()
    for part, what, number in (
        ("cells", "cells of a GeoJSON", "cells"),
        ("bins", "2 µm bins pooled to 16 µm", "bins"),
    ):
        run = json.loads((root / "benchmarks" / "results" / f"scale-{part}-cpu.json").read_text())[part]
        assert run["peak_mib"] < 4096
        assert f"| {what} | {run[number]:,} | {run['peak_mib']:,} | {run['seconds']:,.0f} |" in text
