"""Coverage, abstention and expected r of a map against what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from mclst.evaluation.trust import coverage, risk_coverage, score_genes, score_trust
from mclst.runtime.expression_map.measured import Pair


def pair_of(predicted: np.ndarray, truth: np.ndarray) -> Pair:
    n, genes = truth.shape
    names = tuple(f"G{i}" for i in range(genes))
    spots = np.array([f"s{i}" for i in range(n)])
    return Pair("", "A", names, spots, predicted, truth, None, "gene-wise", 0, 0, 0, 0)


def first_spots(pair: Pair, n: int) -> Pair:
    return pair_of(pair.predicted[:n], pair.truth[:n])


def noisy(n: int = 400, genes: int = 20) -> tuple[Pair, np.ndarray]:
    """Spots whose noise grows evenly from 0.1 to 2."""
    rng = np.random.default_rng(0)
    spread = np.linspace(0.1, 2, n)
    truth = rng.normal(size=(n, genes))
    return pair_of(truth + rng.normal(size=(n, genes)) * spread[:, None], truth), spread


def test_abstention_by_the_true_spread_is_nearly_perfect_and_by_chance_none() -> None:
    pair, spread = noisy()
    good = risk_coverage(pair, spread, "expected_error")
    assert (np.diff(good.risk) > 0).all() and good.gain > 0.9 and good.spearman > 0.9
    error = np.square(pair.predicted - pair.truth).mean(axis=1)
    kept = [error[np.argsort(spread)[: round(400 * share)]].mean() for share in (0.1, 0.5, 1.0)]
    np.testing.assert_allclose(good.risk[[0, 4, 9]], kept)
    chance = risk_coverage(pair, np.random.default_rng(1).random(400), "effective_k")
    assert abs(chance.gain) < 0.2
    constant = risk_coverage(pair, np.ones(400), "effective_k")
    assert constant.gain == pytest.approx(0, abs=1e-9) and np.isnan(constant.spearman)
    assert risk_coverage(pair, -spread, "x").gain < -0.5
    partly = risk_coverage(pair, np.where(np.arange(400) < 300, spread, np.nan), "x")
    np.testing.assert_allclose(partly.risk, risk_coverage(first_spots(pair, 300), spread[:300], "x").risk)
    perfect = risk_coverage(pair, error, "x")
    assert perfect.gain == pytest.approx(1) and perfect.aurc == pytest.approx(perfect.oracle)


def test_coverage_counts_values_with_an_interval_alone() -> None:
    truth = np.arange(12.0).reshape(4, 3)
    low, high = truth - 1, truth + 1
    low[0], high[0] = np.nan, np.nan
    low[1, 0] = truth[1, 0] + 0.5
    result = coverage(pair_of(truth, truth), low, high)
    assert result["covered"] == pytest.approx(8 / 9) and result["width"] == pytest.approx((8 * 2 + 0.5) / 9)
    nothing = coverage(pair_of(truth, truth), np.full_like(low, np.nan), high)
    assert nothing == {"covered": None, "width": None}


def test_expected_r_is_held_against_the_reached_one_by_fifths() -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(300, 20))
    pair = pair_of(truth + rng.normal(size=truth.shape) * np.linspace(4, 0.2, 20), truth)
    reached = np.array([np.corrcoef(pair.predicted[:, g], truth[:, g])[0, 1] for g in range(20)])
    var = pd.DataFrame({"expected_r": reached - 0.1, "low_r": reached - 0.2, "reliable": reached > 0.5})
    order = rng.permutation(20)
    shuffled = pair_of(pair.predicted[:, order], truth[:, order])
    fifths = score_genes(shuffled, var.iloc[order].reset_index(drop=True))["fifths"]
    means = np.sort(reached).reshape(5, 4).mean(axis=1)
    np.testing.assert_allclose(fifths, np.stack([means - 0.1, means], axis=1))


def test_a_map_is_held_against_what_it_says(tmp_path: Path) -> None:
    pair, spread = noisy()
    rng = np.random.default_rng(2)
    order = rng.permutation(400)
    data = anndata.AnnData(pair.predicted[order].astype(np.float32))
    data.obs_names, data.var_names = [f"s{i}" for i in order], list(pair.genes)
    data.obs["expected_error"], data.obs["outside"] = spread[order], order < 100
    data.var["expected_r"], data.var["low_r"] = 0.5, [0.0] * 10 + [1.0] * 10
    data.var["reliable"] = np.arange(20) < 5
    reach = 1.6448536269514722 * spread[order, None]
    data.layers["low"], data.layers["high"] = pair.predicted[order] - reach, pair.predicted[order] + reach
    data.uns["mclst"] = {"trust": {"intervals_percent": 90}}
    data.write_h5ad(tmp_path / "m.h5ad")
    score = score_trust(tmp_path / "m.h5ad", pair)
    assert score is not None
    assert score.nominal == 0.9 and score.covered == pytest.approx(0.9, abs=0.02)
    assert score.outside == 0.25 and score.above_low_r == 0.5 and score.reliable == 5
    r = [np.corrcoef(pair.predicted[:, g], pair.truth[:, g])[0, 1] for g in range(20)]
    assert score.reliable_r == pytest.approx(np.mean(r[:5])) and score.other_r == pytest.approx(
        np.mean(r[5:])
    )
    assert score.row()["gain"] > 0.9
    assert (
        json.loads(json.dumps(score.as_json(), allow_nan=False))["abstention"][0]["ranking"]
        == "expected_error"
    )
    silent = anndata.AnnData(pair.predicted.astype(np.float32))
    silent.obs_names, silent.var_names = list(pair.spot), list(pair.genes)
    silent.write_h5ad(tmp_path / "plain.h5ad")
    assert score_trust(tmp_path / "plain.h5ad", pair) is None
