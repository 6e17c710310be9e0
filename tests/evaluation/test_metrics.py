"""Measures per gene against scipy, scikit-learn, scikit-image and definitions; degenerate input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, pearsonr, spearmanr

from mclst.benchmarks.nulls.fields import disc, gaussian_fields
from mclst.evaluation.metrics.agreement import (
    concordance_per_gene,
    partial_correlation_per_gene,
    r_squared_per_gene,
    relative_variance_per_gene,
    spearman_per_gene,
)
from mclst.evaluation.metrics.autocorrelation import LagClasses, effective_spots
from mclst.evaluation.metrics.gene_sets import GeneStatistics, listed_columns
from mclst.evaluation.metrics.per_gene import headline, measure_genes
from mclst.evaluation.metrics.significance import combine_p, false_discovery_rate, minus_log10_p
from mclst.evaluation.metrics.structure import spot_distance, ssim_of_spots, ssim_per_gene, window_weights
from mclst.runtime.expression_map.morans_i import morans_i

Pairs = tuple[NDArray[np.float64], NDArray[np.float64]]


@st.composite
def pairs(draw: st.DrawFn) -> Pairs:
    """Predicted and measured values with ties, of any scale, level and noise."""
    n, genes = draw(st.integers(4, 40)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth = rng.poisson(draw(st.floats(0.3, 20)), (n, genes)).astype(np.float64)
    truth[0] += 1
    truth[1:] += (truth == truth[:1]).all(axis=0)  # no constant gene
    predicted = draw(st.floats(-2, 2)) * truth + draw(st.floats(-5, 5)) + 0.1 * rng.normal(size=truth.shape)
    return predicted, truth


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_measures_are_those_of_other_libraries(data: Pairs) -> None:
    from sklearn.metrics import r2_score

    predicted, truth = data
    spearman, ccc = spearman_per_gene(predicted, truth), concordance_per_gene(predicted, truth)
    r2, kept = r_squared_per_gene(predicted, truth), relative_variance_per_gene(predicted, truth)
    for g, (a, b) in enumerate(zip(predicted.T, truth.T, strict=True)):
        assert spearman[g] == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
        assert r2[g] == pytest.approx(r2_score(b, a), rel=1e-9, abs=1e-9)
        assert kept[g] == pytest.approx(np.cov(a, b, ddof=1)[0, 0] / np.cov(a, b, ddof=1)[1, 1], rel=1e-9)
        # Lin's formula by r, the ratio of the deviations and the shift in units of both.
        ratio, shift = a.std() / b.std(), (a.mean() - b.mean()) / np.sqrt(a.std() * b.std())
        bias = 2 / (ratio + 1 / ratio + shift**2)
        assert ccc[g] == pytest.approx(pearsonr(a, b).statistic * bias, rel=1e-7, abs=1e-12)


def test_measures_of_degenerate_genes() -> None:
    rng = np.random.default_rng(0)
    truth = np.column_stack([np.full(9, 0.1), rng.normal(size=9), rng.normal(size=9)])
    predicted = np.column_stack([rng.normal(size=9), np.full(9, 0.3), truth[:, 2]])
    assert np.isnan([m(predicted, truth)[0] for m in (spearman_per_gene, concordance_per_gene)]).all()
    assert np.isnan([m(predicted, truth)[0] for m in (r_squared_per_gene, relative_variance_per_gene)]).all()
    assert np.isnan(spearman_per_gene(predicted, truth)[1])
    assert concordance_per_gene(predicted, truth)[1] == 0 == relative_variance_per_gene(predicted, truth)[1]
    assert r_squared_per_gene(predicted, truth)[1] <= 0
    assert (
        concordance_per_gene(predicted, truth)[2]
        == pytest.approx(1)
        == r_squared_per_gene(predicted, truth)[2]
    )
    table = measure_genes(predicted, truth, rng.random((9, 2)))
    assert table["fdr"].isna().tolist() == [True, True, False]
    assert measure_genes(predicted, truth, None)["ssim"].isna().all()
    assert np.isnan(headline(measure_genes(predicted, truth, None))["genes_fdr_5"])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_partial_correlation_is_that_of_the_inverse_covariance(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    given_ = rng.normal(size=(40, count)) * 10.0 ** rng.integers(-3, 4, count) + 5
    truth = given_ @ rng.normal(size=(count, 3)) + rng.normal(size=(40, 3))
    predicted = truth + given_[:, :1] + rng.normal(size=truth.shape)
    result = partial_correlation_per_gene(predicted, truth, given_)
    z = (given_ - given_.mean(0)) / given_.std(0)
    for g in range(3):
        precision = np.linalg.inv(
            np.corrcoef(np.column_stack([predicted[:, g], truth[:, g], z]), rowvar=False)
        )
        expected = -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])
        assert result[g] == pytest.approx(expected, abs=1e-8)
    doubled = np.column_stack([given_, given_[:, 0], np.ones(40)])
    np.testing.assert_allclose(partial_correlation_per_gene(predicted, truth, doubled), result, atol=1e-8)


def test_partial_correlation_of_what_the_covariates_explain_is_undefined() -> None:
    rng = np.random.default_rng(1)
    given_ = rng.normal(size=(20, 2))
    truth, predicted = rng.normal(size=(20, 1)), 3 * given_[:, :1] + 1
    assert np.isnan(partial_correlation_per_gene(predicted, truth, given_)).all()
    assert np.isnan(partial_correlation_per_gene(truth[:4], truth[:4], given_[:4])).all()
    with pytest.raises(ValueError, match="1 covariates are not finite"):
        partial_correlation_per_gene(truth, truth, np.where(given_ == given_[0, 0], np.nan, given_))


def test_ssim_on_a_full_grid_is_scikit_images() -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    rng = np.random.default_rng(2)
    rows, columns = np.meshgrid(np.arange(24.0), np.arange(30.0), indexing="ij")
    truth = np.sin(rows / 4) + 0.5 * rng.normal(size=rows.shape) + 2
    for predicted in (truth + 0.4 * rng.normal(size=truth.shape), 0.2 * truth + 3, np.full_like(truth, 2.0)):
        _, expected = metrics.structural_similarity(
            truth, predicted, data_range=float(np.ptp(truth)), gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )  # fmt: skip
        weights = window_weights(np.column_stack([columns.ravel(), rows.ravel()]) * 7.3)
        result = ssim_of_spots(predicted.reshape(-1, 1), truth.reshape(-1, 1), weights).reshape(truth.shape)
        inside = np.s_[6:-6, 6:-6]
        np.testing.assert_allclose(result[inside], expected[inside], atol=2e-3)


def test_ssim_falls_with_smoothing_and_is_defined_for_lone_spots() -> None:
    xy = disc(9)
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(len(xy), 1))
    weights = window_weights(xy)
    smooth = np.asarray(weights @ truth)
    assert ssim_per_gene(truth, truth, weights)[0] == pytest.approx(1)
    assert ssim_per_gene(smooth, truth, weights)[0] < 0.5
    assert spot_distance(np.zeros((3, 2))) == 1
    np.testing.assert_allclose(window_weights(np.array([[0.0, 0.0], [1.0, 0.0], [99.0, 0.0]])).sum(axis=1), 1)


def slow_effective_spots(a: NDArray[np.float64], b: NDArray[np.float64], xy: NDArray[np.float64]) -> float:
    """Clifford's variance of r, pair by pair, over the same distance classes of a unit grid."""
    edges = [i + 0.5 for i in range(1, 8)]
    while edges[-1] < 200:
        edges.append(edges[-1] * 1.25)
    a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    sums: dict[int, list[float]] = {}
    for i in range(len(xy)):
        for j in range(len(xy)):
            distance = float(np.hypot(*(xy[i] - xy[j])))
            kind = 0 if i == j else 1 + sum(distance >= edge for edge in edges)
            own = sums.setdefault(kind, [0.0, 0.0, 0.0])
            own[0] += 1
            own[1] += a[i] * a[j]
            own[2] += b[i] * b[j]
    variance = sum(of_a * of_b / pairs for pairs, of_a, of_b in sums.values()) / len(xy) ** 2
    return 1 + 1 / max(variance, 1 / (len(xy) - 1))


def test_effective_spots_are_those_of_all_pairs_of_spots() -> None:
    xy = disc(5.5)
    a, b = gaussian_fields(xy, 2.0, 3, seed=4), gaussian_fields(xy, 3.0, 3, seed=5)
    result = effective_spots(a, b, LagClasses.of(xy * 211.0 + 50))
    expected = [slow_effective_spots(a[:, g], b[:, g], xy) for g in range(3)]
    np.testing.assert_allclose(result, expected, rtol=1e-9)
    assert (result < 0.6 * len(xy)).all()
    b[:, 1] = 0.1
    assert np.isnan(effective_spots(a, b, LagClasses.of(xy))).tolist() == [False, True, False]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 40), min_size=1, max_size=30))
def test_false_discovery_rate_is_benjamini_and_hochbergs(values: list[float]) -> None:
    p = 10.0 ** -np.array(values)
    # The smallest p · m / rank of all that are not smaller.
    expected = [min(other * len(p) / np.count_nonzero(p <= other) for other in p[p >= own]) for own in p]
    result = false_discovery_rate(np.array([*values, np.nan]))
    np.testing.assert_allclose(result[:-1], np.minimum(expected, 1), rtol=1e-9)
    np.testing.assert_allclose(result[:-1], false_discovery_control(p), rtol=1e-12)
    assert np.isnan(result[-1])


def test_combined_p_of_dependent_sections() -> None:
    p = np.array([[0.01, 0.5, 1e-30, 0.2], [0.01, 0.5, 0.5, np.nan]])
    result = 10.0 ** -combine_p(-np.log10(p))
    np.testing.assert_allclose(result, [0.01, 0.5, 2e-30, 0.2], rtol=1e-3)  # equal ones give themselves
    assert np.isnan(combine_p(np.array([[np.nan], [np.nan]]))).all()
    sure = combine_p(np.array([[0.0], [0.0]]))
    assert sure[0] == pytest.approx(0, abs=1e-6)


def test_p_values_take_a_number_of_spots_per_gene() -> None:
    r, n = np.array([0.4, 0.4, 0.4]), np.array([10.0, 40.0, 1.5])
    result = minus_log10_p(r, n)
    assert result[0] == minus_log10_p(r[:1], 10)[0] < result[1] == minus_log10_p(r[:1], 40)[0]
    assert result[2] == 0


def test_gene_sets_are_chosen_by_their_definition() -> None:
    rng = np.random.default_rng(8)
    xy = disc(7)
    sections = [rng.poisson(rng.uniform(0.02, 6, 260), (len(xy), 260)).astype(np.float32) for _ in range(2)]
    for counts in sections:  # gene 3 has a slope, gene 4 is high and flat
        counts[:, 3] = rng.poisson(np.exp(xy[:, 0] / 4))
        counts[:, 4] = 60
    statistics = GeneStatistics(260)
    assert statistics.choose() == {}
    expected = {"variance": np.zeros(260), "mean": np.zeros(260), "moran": np.zeros(260)}
    for counts in sections:
        total = counts.sum(axis=1) + 10.0
        statistics.add(counts, total, xy)
        values = np.log1p(counts.astype(float) / total[:, None] * np.median(total))
        expected["variance"] += np.array([np.var(column) for column in values.T])
        expected["mean"] += values.mean(axis=0)
        expected["moran"] += morans_i(values, xy)
    share = np.mean(np.concatenate(sections) > 0, axis=0)
    frequent = np.flatnonzero(share >= 0.1)
    chosen = statistics.choose()
    assert set(chosen["HVG-50"]) == set(frequent[np.argsort(-expected["variance"][frequent])][:50])
    assert set(chosen["SVG-50"]) == set(frequent[np.argsort(-expected["moran"][frequent])][:50])
    assert set(chosen["HEG-50"]) == set(np.argsort(-expected["mean"])[:50])
    assert (
        chosen["SVG-50"][0] == 3
        and chosen["HEG-50"][0] == 4
        and set(chosen["HVG-50"]) < set(chosen["HVG-200"])
    )
    few = GeneStatistics(10)
    few.add(sections[0][:, :10], sections[0].sum(axis=1).astype(float), None)
    assert few.choose() == {}
    assert listed_columns(["A", "B", "C"], ["C", "X", "A"]).tolist() == [2, 0]
