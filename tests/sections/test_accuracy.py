from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import pearsonr

from mclst.sections.accuracy import score

REFERENCE = Path(__file__).resolve().parents[2].parent / "shared" / "her2st" / "reference" / "C4.npz"


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("expression_l1_k200", (0.2571, 0.3918, 0.9136, 0.7800)),
        ("expression_l2_k200", (0.2571, 0.3917, 0.9136, 0.7800)),
        ("expression_softmax_k200", (0.2572, 0.3916, 0.9142, 0.7799)),
        ("expression_l2_k2400", (0.2640, 0.3841, 0.9478, 0.8010)),
    ],
)
def test_the_published_measures_of_a_real_section(column, expected):
    if not REFERENCE.is_file():
        pytest.skip(f"no reference predictions at {REFERENCE}")
    reference = np.load(REFERENCE)
    result = score(reference[column], reference["truth_genewise"])
    assert (result.pcc_acg, result.pcc_heg, result.mse, result.mae) == pytest.approx(expected, abs=5.01e-5)
    assert (result.spots, result.unpredicted) == (184, 0)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float64, (7, 3), elements=st.floats(-100, 100, width=32)),
    arrays(np.float64, (7, 3), elements=st.floats(-100, 100, width=32)),
)
def test_pearson_agrees_with_scipy(predicted, truth):
    assume((np.ptp(predicted, axis=0) > 1e-3).all() and (np.ptp(truth, axis=0) > 1e-3).all())
    result = score(predicted, truth)
    expected = [pearsonr(predicted[:, g], truth[:, g]).statistic for g in range(3)]
    np.testing.assert_allclose(result.pcc_per_gene, expected, atol=1e-9)
    assert result.pcc_acg == pytest.approx(np.mean(expected), abs=1e-9)
    assert result.mse == pytest.approx(np.mean((predicted - truth) ** 2))
    assert result.mae == pytest.approx(np.mean(np.abs(predicted - truth)))


def test_heg_takes_the_fifty_highest_genes_of_the_truth():
    rng = np.random.default_rng(1)
    truth = rng.random((20, 60)) + np.arange(60)
    predicted = rng.random((20, 60))
    predicted[:, 10:] = truth[:, 10:] * 2 - 5
    predicted[:, :10] = -truth[:, :10]
    result = score(predicted, truth)
    assert result.pcc_heg == pytest.approx(1.0)
    assert result.pcc_acg == pytest.approx((50 - 10) / 60)


def test_a_constant_gene_is_skipped_in_acg_but_not_in_heg():
    rng = np.random.default_rng(2)
    truth = rng.random((10, 60))
    predicted = rng.random((10, 60))
    truth[:, 0] = 0  # the lowest mean: outside the fifty
    result = score(predicted, truth)
    assert np.isnan(result.pcc_per_gene[0]) and result.undefined == 1
    assert result.pcc_acg == pytest.approx(result.pcc_per_gene[1:].mean())
    assert np.isfinite(result.pcc_heg)

    truth[:, 1] = 0.1 + 0.2 + 9  # constant, not exactly its own mean, and the highest
    assert np.isnan(score(predicted, truth).pcc_heg)
    assert np.isfinite(score(predicted, truth).pcc_acg)


def test_unreadable_spots_are_skipped_and_counted():
    rng = np.random.default_rng(3)
    truth, predicted = rng.random((12, 5)), rng.random((12, 5)).astype(np.float32)
    holed = predicted.copy()
    holed[[2, 7]] = np.nan
    result, expected = (
        score(holed, truth),
        score(np.delete(predicted, [2, 7], 0), np.delete(truth, [2, 7], 0)),
    )
    assert (result.spots, result.unpredicted) == (10, 2)
    assert (result.pcc_acg, result.mse) == (expected.pcc_acg, expected.mse)


def test_single_holes_and_wrong_shapes_are_refused():
    truth, predicted = np.eye(4), np.eye(4)
    predicted[2, 3] = np.nan
    with pytest.raises(ValueError, match="predicted has nan at spot row 2, gene 3"):
        score(predicted, truth)
    predicted[2] = np.nan
    truth[3, 1] = np.inf
    with pytest.raises(ValueError, match="truth has inf at spot row 3, gene 1"):
        score(predicted, truth)
    with pytest.raises(ValueError, match="give both as"):
        score(predicted, truth[:, :2])
    with pytest.raises(ValueError, match="needs two"):
        score(np.full((3, 2), np.nan), np.ones((3, 2)))
