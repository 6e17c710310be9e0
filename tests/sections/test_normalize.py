"""Normalizations against the formula in float64, scanpy, and the published matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mclst.sections import (
    NORMALIZATIONS,
    find_sections,
    gene_wise,
    match_genes,
    read_gene_list,
    read_section,
    spot_wise,
)
from mclst.sections.normalize import log_share, median_log1p

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
Matrix = NDArray[np.float32]

counts = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.one_of(st.integers(0, 5).map(float), st.floats(0, 1e6, width=32)),
)


def by_hand(matrix: Matrix) -> list[list[float]]:
    """Normalize each row, one number at a time."""
    rows = []
    for row in matrix.astype(float).tolist():
        total = math.fsum(row)
        rows.append([math.log10(10_000 * (value / total) + 1) if total > 0 else 0.0 for value in row])
    return rows


@given(counts)
def test_spot_wise_is_the_formula(matrix: Matrix) -> None:
    result = spot_wise(matrix)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.array(by_hand(matrix)), rtol=1e-6, atol=1e-7)


@given(counts)
def test_gene_wise_is_the_formula_on_genes_by_spots(matrix: Matrix) -> None:
    result = gene_wise(matrix)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.array(by_hand(matrix.T)).T, rtol=1e-6, atol=1e-7)


@given(counts, st.sampled_from([2.0, 0.5, 1024.0]))
def test_a_deeper_sequenced_spot_reads_the_same(matrix: Matrix, factor: float) -> None:
    scaled = matrix.copy()
    scaled[0] *= np.float32(factor)
    if np.array_equal(scaled[0] / np.float32(factor), matrix[0]):
        np.testing.assert_array_equal(spot_wise(scaled), spot_wise(matrix))


def test_zero_sums_stay_zero() -> None:
    matrix = np.array([[0, 0, 0], [1, 0, 3]])
    assert spot_wise(matrix)[0].tolist() == [0, 0, 0]
    assert gene_wise(matrix)[:, 1].tolist() == [0, 0]
    assert np.isfinite(gene_wise(matrix)).all()


def test_none_changes_nothing() -> None:
    matrix = np.array([[0.25, -1.5]], dtype=np.float32)
    assert NORMALIZATIONS["none"](matrix).tolist() == matrix.tolist()
    assert set(NORMALIZATIONS) == {"spot-wise", "gene-wise", "median-log1p", "log-share", "none"}
    assert NORMALIZATIONS["spot-wise"] is spot_wise and NORMALIZATIONS["gene-wise"] is gene_wise


@pytest.mark.slow
def test_median_log1p_is_scanpys() -> None:
    """normalize_total and log1p over all genes, then the model's genes are taken."""
    import anndata
    import scanpy

    counts = np.random.default_rng(0).poisson(2.0, (9, 14)).astype(np.float32)
    data = anndata.AnnData(counts.copy())
    scanpy.pp.normalize_total(data)
    scanpy.pp.log1p(data)
    expected = np.asarray(data.X)[:, :5]
    assert np.abs(median_log1p(counts[:, :5], counts.sum(1)) - expected).max() < 1e-6
    assert np.abs(median_log1p(counts)[:, :5] - expected).max() < 1e-6
    counts[3] = 0
    assert median_log1p(counts)[3].tolist() == [0] * 14 and np.isfinite(median_log1p(counts)).all()
    assert median_log1p(np.zeros((2, 3))).tolist() == [[0, 0, 0]] * 2


def test_log_share_is_st_nets() -> None:
    result = log_share(np.array([[3, 0, 1], [0, 0, 0]]))
    expected = [[math.log(4 / 7), math.log(1 / 7), math.log(2 / 7)], [math.log(1 / 3)] * 3]
    assert np.abs(result - expected).max() < 1e-7
    counts = np.random.default_rng(0).poisson(2.0, (9, 14))
    subset = log_share(counts[:, :5], counts.sum(1), 14)
    assert np.abs(subset - log_share(counts)[:, :5]).max() < 1e-7, "all genes count, some are predicted"
    for total, measured in ((counts.sum(1), None), (None, 14)):
        with pytest.raises(ValueError, match="together"):
            log_share(counts[:, :5], total, measured)


@pytest.mark.parametrize("normalize", [spot_wise, gene_wise, median_log1p, log_share])
@pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
def test_invalid_counts_are_refused(normalize: Callable[[Matrix], Matrix], wrong: float) -> None:
    with pytest.raises(ValueError, match="row 2, column 1"):
        normalize(np.array([[1, 2], [wrong, 3]], dtype=np.float32))
    with pytest.raises(ValueError, match="shape"):
        normalize(np.ones(3, dtype=np.float32))


def test_published_truth() -> None:
    if not (SHARED / "her2st" / "reference" / "C4.npz").exists():
        pytest.skip("reference data her2st is not beside the checkout")
    reference = np.load(SHARED / "her2st" / "reference" / "C4.npz")
    section = read_section(find_sections(SHARED / "her2st")["C4"])
    matched = match_genes(section, read_gene_list(SHARED / "her2st" / "genes.txt"))
    assert section.spot.tolist() == [spot.decode() for spot in reference["spot"]]
    assert np.abs(gene_wise(matched) - reference["truth_genewise"]).max() <= 1e-5
    assert (
        np.abs(spot_wise(matched) - reference["truth_genewise"]).max() > 0.1
    )  # the two are not interchangeable
