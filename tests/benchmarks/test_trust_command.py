"""`mclst-bench trust` on a map, and what `mclst-bench robustness` says of the same tiles."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pytest
from calibrated import calibrate_bundle
from click.testing import CliRunner
from small_model import Small, fast_regression

from mclst.benchmarks.cli import main
from mclst.benchmarks.robustness.measure import AS_IS
from mclst.benchmarks.robustness.perturb import PERTURBATIONS, rescanned
from mclst.benchmarks.robustness.trust import name_colors, place_of
from mclst.runtime.cli.infer import main as infer
from mclst.runtime.trust.calibration import stain_values
from mclst.runtime.trust.stain import measure_stain


@pytest.fixture(scope="module")
def made(small: Small, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a calibrated bundle and its map of section B1."""
    folder = tmp_path_factory.mktemp("trust")
    calibrate_bundle(small_bundle, folder / "bundle")
    words = [small.slide, "--spots", small.spots, "--bundle", folder / "bundle", "--out", folder / "B1.h5ad"]
    done = CliRunner().invoke(infer, [*map(str, words), "--no-html", "--no-picture", "--intervals", "90"])
    assert done.exit_code == 0, done.output
    return folder


def bench(*words: Any) -> Any:
    done = CliRunner().invoke(main, [*map(str, words), "--json", "-", "--quiet"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["results"]


def test_a_map_and_its_perturbed_tiles_are_held_against_the_same_truth(small: Small, made: Path) -> None:
    truth = ("--truth", small.folder, "--section", "B1")
    (row,) = bench("trust", made / "B1.h5ad", *truth)
    written = anndata.read_h5ad(made / "B1.h5ad")
    assert row["file"] == "B1.h5ad" and row["nominal"] == 0.9 and 0 <= row["covered"] <= 1
    assert row["outside"] == pytest.approx(written.obs["outside"].mean())
    assert row["reliable"] == written.var["reliable"].sum()
    assert row["made_by"]["verdict"] == written.uns["mclst"]["trust"]["verdict"]
    words = (small.slide, "--spots", small.spots, "--bundle", made / "bundle", "--provider", "cpu")
    entries = bench("robustness", *words, *truth, "--no-genes")["perturbations"]
    assert list(entries) == [AS_IS, *PERTURBATIONS] and not any(
        "genes" in entry for entry in entries.values()
    )
    as_is = entries[AS_IS]["trust"]
    for name in ("outside", "nominal", "reliable", "reliable_r", "other_r"):
        assert as_is[name] == (None if row[name] is None else pytest.approx(row[name], abs=1e-6)), name
    low, high = (written.layers[name].astype(float) for name in ("low", "high"))
    assert np.isnan(low).any(axis=1).tolist() == written.obs["outside"].tolist()
    assert 0 <= as_is["covered"] <= 1 and (high >= low)[~written.obs["outside"]].all()


def test_a_head_that_predicts_beside_an_embedding_is_perturbed(small: Small, tmp_path: Path) -> None:
    fast_regression(tmp_path / "head", 5, embedding=4)
    words = [small.slide, "--spots", small.spots, "--provider", "cpu", "--most-spots", "8"]
    entries = bench("robustness", *words, "--bundle", tmp_path / "head")["perturbations"]
    assert entries[AS_IS]["change"] == 0 and len(entries[AS_IS]["genes"]) == 5
    assert entries["pale stain −30 %"]["change"] > 0
    fast_regression(tmp_path / "wide", 5, embedding=4, radius_um=50.0)
    refused = CliRunner().invoke(
        main, ["robustness", *map(str, words), "--bundle", str(tmp_path / "wide"), "--mpp", "0.5"]
    )
    assert refused.exit_code == 4 and "averages over neighboring spots" in refused.output


def test_a_map_that_says_nothing_is_refused(small: Small, made: Path) -> None:
    written = anndata.read_h5ad(made / "B1.h5ad")
    written.obs, written.var = written.obs[[]], written.var[[]]
    written.layers.clear()
    written.write_h5ad(made / "silent.h5ad")
    words = ["trust", str(made / "silent.h5ad"), "--truth", str(small.folder), "--section", "B1"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 4 and "nothing that tells its errors" in refused.output
    twice = CliRunner().invoke(main, [*words, "--section", "A1"])
    assert twice.exit_code == 2 and "give one for each" in twice.output


def test_colors_differ_where_the_light_does() -> None:
    rng = np.random.default_rng(0)
    tissue = np.array([170, 90, 150]) + rng.integers(-40, 40, (30, 48, 48, 3))
    tiles, glass = tissue.astype(np.uint8), np.full((9, 24, 24, 3), 240, np.uint8)
    as_is = measure_stain(place_of(tiles), glass)
    calibration: Any = SimpleNamespace(stain=np.array([stain_values(as_is)]))
    assert place_of(tiles).shape == (30, 24, 24, 3)
    assert name_colors(calibration, place_of(tiles), glass, None) == ""
    darker = partial(rescanned, gains=(0.6, 0.6, 0.6), gamma=1.0)
    contexts = np.pad(tiles, ((0, 0), (12, 12), (12, 12), (0, 0)), "edge")
    places = place_of(np.stack([darker(context, 48) for context in contexts]))
    assert name_colors(calibration, places, glass, darker) == "the background"
