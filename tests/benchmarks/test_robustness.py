"""`mclst-bench robustness`: each perturbation against its definition; the command on the committed bundle."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from small_model import Small

from mclst.benchmarks.cli import main
from mclst.benchmarks.robustness.measure import AS_IS, compare_expression
from mclst.benchmarks.robustness.perturb import (
    OTHER_DYES,
    PERTURBATIONS,
    blurred,
    center,
    compressed,
    context_px,
    redyed,
    rescaled,
    rescanned,
    restained,
    rotated,
)
from mclst.evaluation.baselines.stain import STAINS, unmix


@pytest.fixture(scope="module")
def context() -> np.ndarray:
    """Smooth tissue colors around a tile of 32 px."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(60, 230, (8, 8, 3)).astype(np.uint8))
    return np.asarray(coarse.resize((context_px(32),) * 2, Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [31, 32, 224, 225])
def test_a_tile_is_the_center_of_its_context(size: int) -> None:
    side = context_px(size)
    assert side >= 1.42 * size and (side - size) % 2 == 0
    row = np.broadcast_to(np.arange(side)[:, None, None], (side, side, 3)).astype(np.uint16)
    tile = center(row, size)  # type: ignore[arg-type]
    assert tile.shape == (size, size, 3) and tile[0, 0, 0] == side - 1 - tile[-1, 0, 0]


def test_no_change_changes_nothing(context: np.ndarray) -> None:
    as_is = center(context, 32).astype(int)
    for tile in (
        restained(context, 32, hematoxylin=1.0, eosin=1.0),
        rescanned(context, 32, gains=(1.0, 1.0, 1.0), gamma=1.0),
        blurred(context, 32, sigma=0.01),
        rescaled(context, 32, factor=1.0),
        rotated(context, 32, degrees=0),
        rotated(context, 32, degrees=1e-9),
    ):
        assert tile.dtype == np.uint8 and np.abs(tile.astype(int) - as_is).max() <= 1


def test_stain_is_scaled_in_optical_density(context: np.ndarray) -> None:
    before = unmix(center(context, 32))
    after = unmix(restained(context, 32, hematoxylin=1.25, eosin=0.8))
    np.testing.assert_allclose(after[..., 0], 1.25 * before[..., 0], atol=0.06)
    np.testing.assert_allclose(after[..., 1], 0.8 * before[..., 1], atol=0.06)


def test_other_dyes_absorb_in_equal_amounts_with_their_own_color(context: np.ndarray) -> None:
    amounts = unmix(center(context, 32))
    light = redyed(context, 32)[(amounts[..., 2] > -0.05).nonzero()].astype(float)
    assert len(light) > 20
    kept = amounts[amounts[..., 2] > -0.05]
    np.testing.assert_allclose(np.linalg.norm(OTHER_DYES, axis=1), 1, atol=1e-3)
    expected = 255 * np.exp(-(kept[:, :2] @ OTHER_DYES + kept[:, 2:] * STAINS[2]))
    np.testing.assert_allclose(light, expected.clip(0, 255), atol=0.51)


def test_scale_shows_more_or_less_tissue(context: np.ndarray) -> None:
    more = rescaled(context, 32, factor=1.25)
    expected = np.asarray(Image.fromarray(center(context, 40)).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(more, expected)
    assert rescaled(context, 31, factor=0.9).shape == (31, 31, 3)


def test_rotation_turns_around_the_spot(context: np.ndarray) -> None:
    np.testing.assert_array_equal(rotated(context, 32, degrees=90), np.rot90(center(context, 32)))
    twice = rotated(rotated(context, len(context), degrees=45), 32, degrees=45)
    assert np.abs(twice.astype(int) - np.rot90(center(context, 32)).astype(int)).mean() < 4


def test_jpeg_is_pillows(context: np.ndarray) -> None:
    content = io.BytesIO()
    Image.fromarray(center(context, 32)).save(content, format="JPEG", quality=50)
    np.testing.assert_array_equal(compressed(context, 32, quality=50), np.asarray(Image.open(content)))


def test_change_is_in_units_of_a_genes_spread() -> None:
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(200, 3)).astype(np.float32) * (1, 10, 0)
    reference = reference.astype(np.float32)
    result = compare_expression(reference + np.float32(2.0), reference, ["A", "B", "C"])
    assert result["r"] == pytest.approx(1)
    spread = reference.astype(float).std(axis=0)
    assert result["genes"]["A"]["change"] == pytest.approx(2 / spread[0], rel=1e-5)
    assert (
        result["change"]
        == pytest.approx(np.median(2 / spread[:2]), rel=1e-5)
        == pytest.approx(result["shift"])
    )
    assert result["genes"]["C"] == {"r": None, "change": None}


def test_the_command_measures_every_perturbation(small: Small, small_bundle: Path, tmp_path: Path) -> None:
    words = [small.slide, "--spots", small.spots, "--bundle", small_bundle, "--provider", "cpu"]
    words += [
        "--truth",
        small.folder,
        "--section",
        "B1",
        "--json",
        tmp_path / "r.json",
        "--plot",
        tmp_path / "r.png",
    ]
    done = CliRunner().invoke(main, ["robustness", *map(str, words)])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "r.json").read_text())["results"]
    assert list(result["perturbations"]) == [AS_IS, *PERTURBATIONS]
    as_is = result["perturbations"][AS_IS]
    assert as_is["change"] == 0 and as_is["r"] == pytest.approx(1) and len(as_is["genes"]) == 12
    assert all(entry["change"] > 0 for name, entry in result["perturbations"].items() if name != AS_IS)
    assert all(set(entry["scores"]) >= {"pcc_acg", "mse"} for entry in result["perturbations"].values())
    with Image.open(tmp_path / "r.png") as picture:
        assert picture.size[0] > 500
    assert "JPEG 50" in done.stderr
    few = CliRunner().invoke(main, ["robustness", *map(str, words[:7]), "--most-spots", "5", "--json", "-"])
    assert few.exit_code == 0 and json.loads(few.stdout)["results"]["tiles"] == 5


def test_robustness_refuses_in_one_sentence(small: Small, small_bundle: Path, tmp_path: Path) -> None:
    for words, code in (
        ([tmp_path / "no.png", "--spots", small.spots, "--bundle", small_bundle], 4),
        ([small.slide, "--spots", tmp_path / "no.csv", "--bundle", small_bundle], 4),
        ([small.slide, "--spots", small.spots, "--bundle", tmp_path], 4),
        ([small.slide, "--spots", small.spots, "--bundle", small_bundle, "--plot", small.slide], 5),
    ):
        done = CliRunner().invoke(main, ["robustness", *map(str, words)])
        assert done.exit_code == code and "Traceback" not in done.output, done.output
