"""Baselines and their comparison with a map, against scikit-image, scikit-learn and definitions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibrated import held_out, write_calibration
from numpy.typing import NDArray
from PIL import Image
from section_folders import space_ranger
from small_model import fast_regression

from mclst.benchmarks.nulls.fields import disc, gaussian_fields
from mclst.evaluation.assessment import check_leaks
from mclst.evaluation.baselines.comparison import Compared, compare
from mclst.evaluation.baselines.gather import gather_training
from mclst.evaluation.baselines.measured_section import MeasuredSection
from mclst.evaluation.baselines.positions import nearest_spots, smooth_field, training_mean
from mclst.evaluation.baselines.predict import predict_baselines, regress_on
from mclst.evaluation.baselines.stain import Stain, count_nuclei, describe_tile, read_stain, unmix
from mclst.export.calibrate import calibrate
from mclst.runtime.bundle.calibration import calibration_bytes
from mclst.runtime.section_options import SectionFiles
from mclst.sections.accuracy import pearson_per_gene
from mclst.sections.errors import SectionError
from mclst.sections.normalize import SectionTotals

GENES = 6


def section(name: str, expression: NDArray[np.float64], xy: NDArray[np.float64] | None) -> MeasuredSection:
    counts = np.round(np.abs(expression)).astype(np.float32)
    spot = tuple(f"s{i}" for i in range(len(expression)))
    return MeasuredSection(
        name,
        spot,
        counts,
        expression.astype(np.float32),
        SectionTotals.of_counts(counts, counts.sum(1), GENES),
        xy,
        None,
        None,
    )


def sloped(seed: int, noise: float = 0.3, scale: float = 1.0) -> MeasuredSection:
    """Expression that rises across the tissue, whatever the coordinates' unit."""
    xy = disc(8) * scale
    rng = np.random.default_rng(seed)
    slope = (xy[:, :1] - xy[:, :1].min()) / np.ptp(xy[:, 0]) * np.arange(1, GENES + 1)
    return section(f"S{seed}", slope + noise * rng.normal(size=(len(xy), GENES)), xy)


def test_the_training_mean_is_over_all_spots() -> None:
    training = [sloped(1), section("S2", np.ones((3, GENES)), None)]
    pooled = np.concatenate([training[0].expression, training[1].expression])
    np.testing.assert_allclose(training_mean(training), pooled.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("baseline", [smooth_field, nearest_spots])
def test_baselines_by_position_find_a_gradient_in_any_unit(baseline: object) -> None:
    training, test = [sloped(1), sloped(2, scale=150.0)], sloped(3, scale=0.01)
    result = baseline(training, test)  # type: ignore[operator]
    r = pearson_per_gene(result[0], test.expression.astype(float))
    assert r[-1] > 0.95 and result[0].shape == test.expression.shape
    assert baseline([section("S4", np.ones((5, GENES)), None)], test) is None  # type: ignore[operator]
    assert test.xy is not None
    partly = section(
        "S5", test.expression.astype(float), np.where(np.arange(len(test))[:, None] == 4, np.nan, test.xy)
    )
    lone, _ = baseline(training, partly)  # type: ignore[operator]
    np.testing.assert_allclose(lone[4], training_mean(training), rtol=1e-5)


def test_one_nearest_spot_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    training = [section("A", rng.normal(size=(40, GENES)), rng.random((40, 2)))]
    test = section("B", rng.normal(size=(9, GENES)), rng.random((9, 2)))
    result = nearest_spots(training, test)
    assert (
        result is not None
        and result[1] == "1 spots"
        and training[0].place is not None
        and test.place is not None
    )
    distance = np.linalg.norm(test.place[:, None] - training[0].place[None], axis=2)
    np.testing.assert_allclose(result[0], training[0].expression[distance.argmin(axis=1)], rtol=1e-6)


def test_a_smooth_field_is_the_weighted_mean_of_the_training_spots() -> None:
    """Against the kernel average itself; the field's cells make the difference."""
    training, test = [sloped(1)], sloped(2)
    result = smooth_field(training, test)
    assert result is not None and result[1] == "width 0.12 of the tissue"  # one section cannot choose
    assert training[0].place is not None and test.place is not None
    distance = np.linalg.norm(test.place[:, None] - training[0].place[None], axis=2)
    weight = np.exp(-(distance**2) / (2 * 0.12**2))
    expected = weight @ training[0].expression / weight.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(result[0], expected, atol=0.05)


def test_stains_are_scikit_images() -> None:
    color = pytest.importorskip("skimage.color", reason="scikit-image is not installed")
    tile = np.random.default_rng(1).integers(1, 256, (9, 7, 3)).astype(np.uint8)
    # scikit-image leaves no stain below 0, and divides by its logarithm of 1e-6.
    expected = color.rgb2hed(tile) * -np.log(1e-6)
    np.testing.assert_allclose(np.maximum(unmix(tile), 0), expected, atol=1e-6)
    assert np.allclose(unmix(np.full((1, 3), 255, np.uint8)), 0)


def tile_with_nuclei(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Pink tissue of 150 px with round nuclei of 4 px radius, none touching another."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(100)[:count]
    y, x = np.mgrid[:150, :150]
    tile = np.full((150, 150, 3), (230, 170, 200), np.float64)
    for cell in cells.tolist():
        inside = np.hypot(x - (cell % 10 * 15 + 7), y - (cell // 10 * 15 + 7)) <= 4
        tile[inside] = (90, 60, 140)
    return (tile + rng.normal(0, 4, tile.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("count", [0, 7, 40])
def test_nuclei_are_counted(count: int) -> None:
    tile = tile_with_nuclei(count)
    assert count_nuclei(unmix(tile)[..., 0], 1.0) == count
    twice = np.asarray(Image.fromarray(tile).resize((300, 300), Image.Resampling.BICUBIC))
    assert count_nuclei(unmix(twice)[..., 0], 0.5) == count
    values, descriptor = describe_tile(tile, 1.0)
    assert values[2] == pytest.approx(count / 0.15**2) and descriptor.shape == (144,)


def test_tiles_of_a_section_are_measured_where_there_are_positions(tmp_path: Path) -> None:
    picture = np.concatenate([tile_with_nuclei(40), tile_with_nuclei(5)], axis=1)
    Image.fromarray(picture).save(tmp_path / "A.png")
    stain = read_stain(tmp_path / "A.png", np.array([[75.0, 75.0], [np.nan, 1.0], [225.0, 75.0]]), 1.0)
    assert stain.values[:, 2] == pytest.approx([40 / 0.15**2, np.nan, 5 / 0.15**2], nan_ok=True)
    assert stain.values[0, 0] > stain.values[2, 0] > 0


def test_regression_on_stain_is_scikit_learns() -> None:
    from sklearn.linear_model import LinearRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(2)
    parts = [(rng.normal(i, 1 + i, (30, 3)), rng.normal(size=(30, 4)).astype(np.float32)) for i in range(2)]
    own = rng.normal(5, 3, (10, 3))
    model = LinearRegression().fit(
        np.concatenate([StandardScaler().fit_transform(x) for x, _ in parts]),
        np.concatenate([y for _, y in parts]),
    )
    np.testing.assert_allclose(
        regress_on(parts, own), model.predict(StandardScaler().fit_transform(own)), atol=1e-5
    )
    parts[0][0][3] = np.nan
    own[2] = np.nan
    assert np.isnan(regress_on(parts, own)).any(axis=1).tolist() == [i == 2 for i in range(10)]


def test_all_baselines_are_listed_with_what_they_lack() -> None:
    training = [sloped(1), sloped(2)]
    made = {b.name: b for b in predict_baselines(training, sloped(3), relatives=["S2"])}
    assert list(made) == [
        "training mean",
        "patient's mean",
        "smooth field",
        "nearest spots",
        "stain and nuclei",
    ]
    assert (
        made["stain and nuclei"].expression is None
        and "no image of section S3" in made["stain and nuclei"].made_of
    )
    assert made["smooth field"].made_of.startswith("S2; width")
    own = made["patient's mean"].expression
    assert own is not None
    np.testing.assert_allclose(own[0], training[1].expression.mean(axis=0), rtol=1e-5)
    stain = Stain(
        np.random.default_rng(0).normal(size=(len(training[0]), 3)),
        np.zeros((len(training[0]), 144), np.float32),
    )
    with_stain = predict_baselines(training, sloped(3), stains=dict.fromkeys(("S1", "S2", "S3"), stain))
    assert with_stain[-1].expression is not None and with_stain[-1].made_of == "S1, S2"
    further = {
        "ridge": ("the tile", lambda sections, test: (np.zeros((len(test), GENES)), f"{len(sections)} parts"))
    }
    assert predict_baselines(training, sloped(3), further=further)[-1].made_of == "2 parts"


def compared(
    noise_map: float, noise_other: float, *, seed: int, group: str = "", genes: int = 40
) -> Compared:
    xy = disc(8)
    truth = gaussian_fields(xy, 2.0, genes, seed=seed)
    of_map = truth + noise_map * gaussian_fields(xy, 2.0, genes, seed=seed + 10_000)
    other = truth + noise_other * gaussian_fields(xy, 2.0, genes, seed=seed + 20_000)
    return Compared(truth, of_map, other, xy, group or f"P{seed}")


def test_differences_are_those_of_the_measures_themselves() -> None:
    parts = [compared(0.5, 1.0, seed=1), compared(0.7, 1.2, seed=2)]
    chosen = np.array([3, 5, 7])
    result = compare(parts, {"all": np.arange(40), "some": chosen})["some"]
    r = [[pearson_per_gene(v, p.truth)[chosen].mean() for v in (p.map, p.other)] for p in parts]
    assert (result.r_map, result.r_other) == pytest.approx(np.mean(r, axis=0).tolist())
    assert result.r.value == pytest.approx(np.mean(r, axis=0)[0] - np.mean(r, axis=0)[1])
    mse = [[np.square(v - p.truth)[:, chosen].mean() for v in (p.map, p.other)] for p in parts]
    assert result.mse.value == pytest.approx(np.mean(mse, axis=0)[1] - np.mean(mse, axis=0)[0])
    assert (
        result.outcome == "better"
        and result.resampled == "blocks"
        and result.r.low < result.r.value < result.r.high
    )
    swapped = compare(
        [Compared(p.truth, p.other, p.map, p.xy, p.group) for p in parts], {"all": np.arange(40)}
    )
    assert swapped["all"].outcome == "worse"


def test_a_constant_baseline_is_judged_by_its_error() -> None:
    part = compared(0.3, 1.0, seed=3)
    flat = Compared(part.truth, part.map, np.tile(part.truth.mean(axis=0), (len(part.truth), 1)), None, "P")
    result = compare([flat], {"all": np.arange(40)})["all"]
    assert np.isnan([result.r_other, result.r.value, result.better]).all()
    assert result.decisive is result.mse and result.outcome == "better"


def test_many_patients_are_resampled_whole() -> None:
    parts = [compared(0.5, 0.5 + 0.1 * (i % 3), seed=i, group=f"P{i % 5}", genes=10) for i in range(10)]
    result = compare(parts, {"all": np.arange(10)})["all"]
    assert result.resampled == "patients"
    assert compare(parts[:5], {"all": np.arange(10)})["all"].resampled == "sections"
    r = [pearson_per_gene(p.map, p.truth).mean() - pearson_per_gene(p.other, p.truth).mean() for p in parts]
    by_patient = [np.mean([r[i], r[i + 5]]) for i in range(5)]
    spread = np.std(by_patient) / np.sqrt(5)  # of the mean over five drawn patients
    t = 2.776  # of four degrees of freedom
    assert result.r.high - result.r.low == pytest.approx(2 * t * spread * np.sqrt(5 / 4), rel=0.15)


def test_intervals_cover_no_difference_where_there_is_none() -> None:
    """Two equally good maps, 60 times: the interval misses 0 in about 5 % of them."""
    outcomes = [
        compare([compared(1.0, 1.0, seed=s, genes=1)], {"all": np.arange(1)})["all"] for s in range(60)
    ]
    missed = sum(result.outcome != "not told apart" for result in outcomes)
    assert missed <= 9


@pytest.mark.parametrize("named", ["manifest", "calibration", "neither"])
def test_a_bundle_without_a_bank_names_its_training_sections(tmp_path: Path, named: str) -> None:
    """In its manifest, or in an older fit's calibration; sections that calibrate another network are none."""
    fast_regression(tmp_path / "fit", 2, embedding=0 if named == "neither" else 8)
    groups = held_out(groups=2, spots=20, genes=2, dim=2 if named == "neither" else 8)
    calibration = calibrate(
        [replace(one, group=name) for one, name in zip(groups, ("P1", "P9"), strict=True)]
    )
    write_calibration(tmp_path / "fit", calibration_bytes(calibration))
    manifest = tmp_path / "fit" / "manifest.json"
    if named == "manifest":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "trained_on": ["P1", "P9"]}))
    for name in ("P1", "P2"):
        space_ranger(tmp_path / "truth" / name, 0.25)
    genes = ["TP53", "MYC"]
    data = gather_training(tmp_path / "truth", ["P1"], genes, "spot-wise", bundle=tmp_path / "fit")
    if named == "neither":
        assert data.names == ("P2",) and not data.sure
        return
    assert data.names == ("P1", "P9") and data.sure and named in data.how
    leak = check_leaks(data, genes, {})[0]
    assert leak.severity == "leak" and "P1 itself is among the training sections" in leak.text


def test_slides_are_given_to_the_test_and_to_the_training(tmp_path: Path) -> None:
    """By --image and images.csv; a downscaled picture has its own µm per pixel."""
    for name in ("P1", "P2", "P3"):
        space_ranger(tmp_path / name, 0.25)
    (tmp_path / "images.csv").write_text("section,image\nP2,https://host/P2.svs\n")
    (tmp_path / "own.svs").touch()
    files = SectionFiles(images=(f"P1={tmp_path / 'own.svs'}",), hires=True)
    data = gather_training(tmp_path, ["P1"], ["TP53", "MYC"], "spot-wise", files=files)
    assert data.tests["P1"].image == tmp_path / "own.svs" and data.tests["P1"].image_mpp(0.5) == 0.5
    away, hires = data.sections
    assert (away.name, str(away.image), away.image_mpp(0.5)) == ("P2", "https://host/P2.svs", 0.5)
    assert hires.name == "P3" and hires.image_mpp(0.5) == 2.0 and hires.image_mpp(None) is None
    with pytest.raises(SectionError, match="names section P9, which does not exist"):
        gather_training(tmp_path, ["P1"], ["TP53"], "spot-wise", files=SectionFiles(images=("P9=a.svs",)))
