"""The figures of a calibration against known noise, closed forms and brute force; hostile files."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from calibrated import held_out
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick
from scipy.spatial.distance import cdist
from scipy.stats import norm

from mclst.export.calibrate import HeldOut, calibrate, expected_correlation
from mclst.runtime.bundle.calibration import calibration_bytes, read_calibration
from mclst.runtime.errors import BundleError
from mclst.runtime.trust.calibration import SHAPES, Calibration

GENES, DIM = 30, 8


def coverage(calibration: Calibration, group: HeldOut, level: int) -> float:
    distance = calibration.distances(group.embedding)
    prediction = np.asarray(group.prediction, np.float32)
    low, high = calibration.interval(prediction, distance, np.zeros(len(distance), bool), level)
    return float(((group.truth >= low) & (group.truth <= high)).mean())


@pytest.mark.parametrize("noise", ["equal", "per gene"])
def test_intervals_cover_what_they_say_where_the_noise_is_known(noise: str) -> None:
    """New sections of one distribution: within two points of 80 and 90 %, and as wide as the noise is."""
    spread = np.full(GENES, 0.5) if noise == "equal" else np.linspace(0.1, 1.5, GENES)
    every = held_out(3, groups=9, noise=spread)
    calibration = calibrate(every[:5])
    for level, nominal in enumerate((0.8, 0.9)):
        covered = [coverage(calibration, group, level) for group in every[5:]]
        assert abs(np.mean(covered) - nominal) < 0.02
        width = calibration.residual[level, :, 1] - calibration.residual[level, :, 0]
        exact = 2 * norm.ppf(0.5 + nominal / 2) * spread
        assert np.abs(width.mean(axis=0) / exact - 1).max() < 0.15
    assert np.abs(calibration.coverage - [[0.8], [0.9]]).max() < 0.02
    assert np.abs(calibration.error / spread - 1).max() < 0.1


def test_intervals_of_negative_units_hold_as_much_as_those_of_others() -> None:
    """Logarithms of shares are all below 0."""
    every = [
        replace(group, prediction=group.prediction - 20, truth=group.truth - 20)
        for group in held_out(3, groups=7, spots=200)
    ]
    calibration = calibrate(every[:5])
    assert np.mean([coverage(calibration, group, 1) for group in every[5:]]) == pytest.approx(0.9, abs=0.03)


def test_a_section_that_is_unlike_the_others_is_reported() -> None:
    """Exchangeability broken on purpose: three times the noise in one section."""
    groups = held_out(4)
    bad = groups[2]
    groups[2] = replace(bad, truth=bad.prediction + 3 * (bad.truth - bad.prediction))
    calibration = calibrate(groups)
    others = [0, 1, 3, 4]
    assert calibration.coverage[1, 2] < 0.6
    assert (calibration.coverage[1, others] > 0.88).all()


def test_every_section_counts_the_same_however_large_it_is() -> None:
    small, large = held_out(5, groups=2, noise=0.2), held_out(6, groups=1, noise=1.0)
    copies = replace(
        large[0],
        prediction=np.tile(large[0].prediction, (20, 1)),
        truth=np.tile(large[0].truth, (20, 1)),
        embedding=np.tile(large[0].embedding, (20, 1)),
    )
    one, other = (calibrate([*small, group]) for group in (large[0], copies))
    assert np.abs(one.residual[1].mean(axis=0) - other.residual[1].mean(axis=0)).max() < 0.12


def test_distances_are_those_of_brute_force() -> None:
    calibration = calibrate(held_out(7))
    queries = np.random.default_rng(0).normal(size=(1000, DIM)).astype(np.float32)
    expected = cdist(queries @ calibration.projection, calibration.gallery).min(axis=1)
    np.testing.assert_allclose(calibration.distances(queries), expected, rtol=1e-4, atol=1e-5)
    assert calibration.distances(queries[:0]).shape == (0,)


def test_new_spots_of_the_same_tissue_fill_the_percentiles_and_far_ones_are_beyond() -> None:
    every = held_out(8, groups=6, spots=600)
    calibration = calibrate(every[:5])
    same = calibration.percentiles(calibration.distances(every[5].embedding))
    assert np.abs(np.quantile(same, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.08
    far = calibration.percentiles(calibration.distances(every[5].embedding + 20))
    assert (far == 1).all()


def test_expected_r_is_empirical_bayes() -> None:
    """Genes of a known true r, seen in few sections: closer to it than what was seen, and calibrated."""
    rng = np.random.default_rng(9)
    true, noise = rng.normal(0.3, 0.15, 4000), 0.2
    seen = np.tanh(true + rng.normal(0, noise, (3, 4000)))
    expected, low = expected_correlation(seen)
    shrunk, raw = np.arctanh(expected) - true, np.arctanh(seen).mean(axis=0) - true
    kept = 0.15**2 / (0.15**2 + noise**2 / 3)
    assert np.mean(shrunk**2) == pytest.approx(kept * noise**2 / 3, rel=0.1)
    assert np.mean(shrunk**2) < 0.7 * np.mean(raw**2)
    new = np.tanh(true + rng.normal(0, noise, 4000))
    assert np.mean(new > low) == pytest.approx(0.9, abs=0.015)


def test_genes_that_are_constant_somewhere() -> None:
    r = np.array([[0.5, np.nan, np.nan, 1.0], [0.4, 0.2, np.nan, 1.0]])
    expected, low = expected_correlation(r)
    assert np.isnan(expected[2]) and np.isnan(low[2])
    assert np.isfinite(expected[[0, 1, 3]]).all() and expected[3] > 0.9
    assert not np.isnan(expected_correlation(r[:1])[0][0])


def test_the_expected_error_of_a_spot_ranks_the_errors() -> None:
    rng = np.random.default_rng(10)
    groups = []
    for number in range(4):
        prediction = rng.gamma(2, 1, (400, 1)) + rng.normal(0, 0.1, (400, GENES))
        truth = prediction + rng.normal(size=prediction.shape) * (
            0.1 + 0.4 * prediction.mean(1, keepdims=True)
        )
        groups.append(HeldOut(f"S{number}", prediction, truth, rng.normal(size=(400, DIM))))
    calibration = calibrate(groups[:3])
    assert calibration.ranks_spots
    expected = calibration.spot_errors(np.asarray(groups[3].prediction, np.float32))
    reached = np.sqrt(np.square(groups[3].truth - groups[3].prediction).mean(axis=1))
    assert np.corrcoef(expected, reached)[0, 1] > 0.9
    assert expected.mean() == pytest.approx(reached.mean(), rel=0.05)


def test_where_predictions_do_not_tell_the_error_every_spot_has_the_same() -> None:
    groups = held_out(12, noise=0.5)
    calibration = calibrate(groups)
    assert not calibration.ranks_spots
    expected = calibration.spot_errors(np.asarray(groups[0].prediction, np.float32))
    np.testing.assert_allclose(expected, 0.5, rtol=0.02)


@pytest.mark.parametrize("groups", [1, 0])
def test_too_few_groups_are_refused(groups: int) -> None:
    with pytest.raises(ValueError, match="two or more"):
        calibrate(held_out(0, groups=groups))


@quick
@given(
    seed=st.integers(0, 100),
    prediction=st.floats(-2, 8, width=32),
    distance=st.floats(0, 100, width=32),
    level=st.integers(0, 1),
)
def test_an_interval_is_one(seed: int, prediction: float, distance: float, level: int) -> None:
    calibration = ONES[seed % len(ONES)]
    values = np.full((2, GENES), prediction, np.float32)
    outside = np.array([False, True])
    low, high = calibration.interval(values, np.full(2, distance, np.float32), outside, level, least=0)
    assert (low[0] <= high[0]).all() and (low[0] >= min(prediction, 0)).all()
    assert np.isnan(low[1]).all() and np.isnan(high[1]).all()


ONES = [calibrate(held_out(seed, groups=3, spots=60)) for seed in range(3)]


def test_a_calibration_reads_back(tmp_path: Path) -> None:
    calibration = calibrate(held_out(11), kind="patient", stain=np.ones((2, 11)))
    (tmp_path / "calibration.h5").write_bytes(calibration_bytes(calibration))
    back = read_calibration(tmp_path / "calibration.h5", genes=GENES, dim=DIM)
    assert (back.kind, back.group, back.sections, back.spots) == ("patient", calibration.group, 5, 2000)
    for name in SHAPES:
        np.testing.assert_array_equal(getattr(back, name), getattr(calibration, name))


def spoilt(change: Callable[[h5py.File], Any]) -> bytes:
    buffer = io.BytesIO(calibration_bytes(ONES[0]))
    with h5py.File(buffer, "r+") as file:
        change(file)
    return buffer.getvalue()


def put(name: str, values: Any, **options: Any) -> Callable[[h5py.File], Any]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=values, **options)

    return change


TEXTS = h5py.string_dtype()
HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"no HDF5",
    "cut off": lambda: calibration_bytes(ONES[0])[:3000],
    "genes of another bundle": lambda: spoilt(put("error", np.ones(7, "f4"))),
    "dimensions of another bundle": lambda: spoilt(put("projection", np.ones((9, 8), "f4"))),
    "a missing part": lambda: spoilt(lambda file: file.pop("gallery", None) or file.__delitem__("edges")),
    "double precision": lambda: spoilt(put("distance", np.arange(101.0))),
    "not finite": lambda: spoilt(put("distance", np.full(101, np.nan, "f4"))),
    "percentiles out of order": lambda: spoilt(put("distance", np.arange(101, 0, -1).astype("f4"))),
    "an upper quantile below the lower": lambda: spoilt(
        lambda f: f["residual"].write_direct(-f["residual"][:])
    ),
    "compressed": lambda: spoilt(put("distance", np.arange(101, dtype="f4"), compression="gzip")),
    "a soft link": lambda: spoilt(
        lambda f: (f.move("distance", "other"), f.__setitem__("distance", h5py.SoftLink("/other")))
    ),
    "an external link": lambda: spoilt(
        lambda f: (f.__delitem__("distance"), f.__setitem__("distance", h5py.ExternalLink("x.h5", "/d")))
    ),
    "a gallery without rows": lambda: spoilt(put("gallery", np.ones((0, 8), "f4"))),
    "a gallery of a million rows": lambda: spoilt(put("gallery", np.ones((10**6, 8), "f4"))),
    "more declared than the file holds": lambda: spoilt(
        lambda f: (f.__delitem__("gallery"), f.create_dataset("gallery", (10**9, 8), "f4"))
    ),
    "another format": lambda: spoilt(put("texts", ["x", "section", "S0", "S1", "S2"], dtype=TEXTS)),
    "a name of ten million letters": lambda: spoilt(
        put(
            "texts",
            ["mclst-calibration/1", "section", "S0", "S1", "S" * 10**7],
            dtype=TEXTS,
        )
    ),
    "no spots": lambda: spoilt(put("counts", np.array([3, 0]))),
    "fewer names than groups": lambda: spoilt(
        put("texts", ["mclst-calibration/1", "section", "S0"], dtype=TEXTS)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_spoilt_calibration_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "calibration.h5"
    path.write_bytes(HOSTILE[name]())
    with pytest.raises(BundleError, match="export the bundle again") as refusal:
        read_calibration(path, genes=GENES, dim=DIM)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
