"""What a map says of itself against what was measured: intervals, abstention, expected r."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from mclst.runtime.console import say
from mclst.runtime.expression_map.measured import Pair
from mclst.sections.accuracy import pearson_per_gene

RANKINGS = ("expected_error", "distance_percentile", "nearest_distance", "effective_k")
"""Columns of `obs` that may rank spots by their error, the largest first; effective_k the smallest first."""
FIFTHS = 5
CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
HEADINGS = {
    "method": "method",
    "section": "section",
    "outside": "outside",
    "nominal": "nominal",
    "covered": "covered",
    "width": "width",
    "spearman": "rank r of error",
    "gain": "gain",
    "expected_r": "expected r",
    "reached_r": "r",
    "reliable_r": "r reliable",
    "other_r": "r others",
    "above_low_r": "above low r",
}
DEFINITIONS = (
    "outside      share of the spots that the map calls unlike its calibration",
    "covered      share of the measured values inside low ... high, nominal as the map says; width: mean",
    "rank r       Spearman correlation of expected and reached error (RMSE over the genes) of spots inside",
    "gain         of the area between random and perfect abstention, the share won; 0: no better than chance",
    "above low r  share of the genes whose r exceeds the map's low_r; 90 % is nominal",
)


@dataclass(frozen=True)
class RiskCoverage:
    """Error of the spots that are kept when, of those with an estimate, the worst are left out.

    Attributes
    ----------
    ranking : str
        Column of `obs` that ranks the spots.
    risk : float64 [10]
        Mean squared error of the first 10, 20, ... 100 % of the spots.
    aurc, random, oracle : float
        Area under the whole curve; of a random order, which is the mean error; of the order by error itself.
    spearman : float
        Rank correlation with the error; NaN for a constant ranking.
    """

    ranking: str
    risk: NDArray[np.float64]
    aurc: float
    random: float
    oracle: float
    spearman: float

    @property
    def gain(self) -> float:
        """(random - aurc) / (random - oracle): 1 is perfect, 0 no better than chance."""
        room = self.random - self.oracle
        return (self.random - self.aurc) / room if room > 0 else float("nan")


@dataclass(frozen=True)
class TrustScore:
    """What one map's own figures are worth on one section; None where the map has none.

    Attributes
    ----------
    method, section : str
    outside : float or None
        Share of the spots.
    nominal, covered, width : float or None
        Of the intervals, over all values with one.
    abstention : tuple of RiskCoverage
        One per ranking that the map has.
    reliable : int or None
        Number of genes that the map calls so.
    expected_r, reached_r, reliable_r, other_r : float or None
        Means over the genes; the last two of the reached r.
    expected_r_correlation : float or None
        Pearson correlation of expected and reached r over the genes.
    above_low_r : float or None
        Share of the genes.
    fifths : tuple of (float, float)
        Mean expected and reached r of each fifth of the genes, from the lowest expected r to the highest.
    """

    method: str
    section: str
    outside: float | None = None
    nominal: float | None = None
    covered: float | None = None
    width: float | None = None
    abstention: tuple[RiskCoverage, ...] = ()
    reliable: int | None = None
    expected_r: float | None = None
    reached_r: float | None = None
    reliable_r: float | None = None
    other_r: float | None = None
    expected_r_correlation: float | None = None
    above_low_r: float | None = None
    fifths: tuple[tuple[float, float], ...] = ()

    def row(self) -> dict[str, Any]:
        """Return one row for a table; abstention by the first ranking."""
        names = [name for name in HEADINGS if name not in ("spearman", "gain")]
        row = {name: getattr(self, name) for name in names}
        first = self.abstention[0] if self.abstention else None
        if first is not None and first.ranking == "expected_error":
            row |= {"spearman": first.spearman, "gain": first.gain}
        return row

    def as_json(self) -> dict[str, Any]:
        """Return plain values; NaN becomes None."""
        content = {name: value for name, value in vars(self).items() if name != "abstention"}
        content["abstention"] = [
            {
                "ranking": curve.ranking,
                "kept": list(CURVE),
                "risk": [float(value) for value in curve.risk],
                **{name: getattr(curve, name) for name in ("aurc", "random", "oracle", "spearman", "gain")},
            }
            for curve in self.abstention
        ]
        return {name: _plain(value) for name, value in content.items()}


def score_trust(path: Path, pair: Pair) -> TrustScore | None:
    """Hold what a map says of itself against its pair; None if it says nothing of the kind."""
    data = anndata.read_h5ad(path, backed="r")
    try:
        rows = data.obs_names.get_indexer(list(pair.spot))
        genes = data.var_names.get_indexer(list(pair.genes))
        obs, var = data.obs.iloc[rows], data.var.iloc[genes]
        layers = {
            name: np.asarray(data.layers[name], np.float64)[np.ix_(rows, genes)]
            for name in ("low", "high")
            if name in data.layers
        }
        provenance = data.uns.get("mclst", {})
        trust = provenance.get("trust", {}) if isinstance(provenance, Mapping) else {}
        percent = trust.get("intervals_percent") if isinstance(trust, Mapping) else None
    finally:
        data.file.close()
    abstention = tuple(
        risk_coverage(pair, obs[name].to_numpy(np.float64) * (-1 if name == "effective_k" else 1), name)
        for name in RANKINGS
        if name in obs and obs[name].notna().any()
    )
    if not abstention and not layers and "expected_r" not in var:
        return None
    values: dict[str, Any] = {}
    if "outside" in obs:
        values["outside"] = float(obs["outside"].to_numpy(bool).mean())
    if len(layers) == 2:
        values |= coverage(pair, layers["low"], layers["high"])
        values["nominal"] = None if percent is None else float(percent) / 100
    if {"expected_r", "low_r", "reliable"} <= set(var.columns):
        values |= score_genes(pair, var)
    return TrustScore(pair.method, pair.section, abstention=abstention, **values)


def coverage(pair: Pair, low: NDArray[np.float64], high: NDArray[np.float64]) -> dict[str, float | None]:
    """Share of the truth inside intervals [n, G], NaN where there is none, and their mean width."""
    known = ~np.isnan(low) & ~np.isnan(high)
    if not known.any():
        return {"covered": None, "width": None}
    inside = (pair.truth >= low) & (pair.truth <= high)
    return {"covered": float(inside[known].mean()), "width": float((high - low)[known].mean())}


def risk_coverage(pair: Pair, ranking: NDArray[np.float64], name: str) -> RiskCoverage:
    """Rank spots [n] by an estimate of their error and leave the worst out; those without one do not count.

    Source: El-Yaniv and Wiener, On the foundations of noise-free selective classification, JMLR 2010; AURC
    after Geifman, Uziel and El-Yaniv, ICLR 2019.
    """
    known = ~np.isnan(ranking)
    error = np.square(pair.predicted - pair.truth)[known].mean(axis=1)
    ranking = ranking[known]
    counts = np.arange(1, len(error) + 1)

    def curve(by: NDArray[np.float64]) -> NDArray[np.float64]:
        # Spots that rank the same have the same chance to be kept: each takes their mean error.
        _, group = np.unique(by, return_inverse=True)
        mean = np.bincount(group, error) / np.bincount(group)
        return np.asarray(np.cumsum(mean[group][np.argsort(by, kind="stable")]) / counts)

    whole = curve(ranking)
    kept = np.maximum(1, np.round(np.array(CURVE) * len(error)).astype(int))
    varies = len(np.unique(ranking)) > 1 and len(np.unique(error)) > 1
    return RiskCoverage(
        name,
        whole[kept - 1],
        float(whole.mean()),
        float(error.mean()),
        float(curve(error).mean()),
        float(spearmanr(ranking, error).statistic) if varies else float("nan"),
    )


def score_genes(pair: Pair, var: pd.DataFrame) -> dict[str, Any]:
    """Expected against reached r; var: `expected_r`, `low_r` and `reliable` of the pair's genes."""
    reached = pearson_per_gene(pair.predicted, pair.truth)
    expected, low = (var[name].to_numpy(np.float64) for name in ("expected_r", "low_r"))
    known = ~np.isnan(reached) & ~np.isnan(expected)
    reliable = var["reliable"].to_numpy(bool)
    if not known.any():
        return {}
    varies = known.sum() > 2 and np.ptp(expected[known]) > 0 and np.ptp(reached[known]) > 0
    return {
        "reliable": int(reliable.sum()),
        "expected_r": float(expected[known].mean()),
        "reached_r": float(reached[known].mean()),
        "reliable_r": _mean(reached[known & reliable]),
        "other_r": _mean(reached[known & ~reliable]),
        "expected_r_correlation": float(np.corrcoef(expected[known], reached[known])[0, 1])
        if varies
        else None,
        "above_low_r": float((reached[known] > low[known]).mean()),
        "fifths": _fifths(expected[known], reached[known]),
    }


def _fifths(expected: NDArray[np.float64], reached: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    parts = np.array_split(np.argsort(expected, kind="stable"), FIFTHS)
    return tuple((float(expected[part].mean()), float(reached[part].mean())) for part in parts if len(part))


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _plain(value: Any) -> Any:
    if isinstance(value, float) and np.isnan(value):
        return None
    if isinstance(value, list):
        return [{k: _plain(v) for k, v in item.items()} if isinstance(item, dict) else item for item in value]
    return value


def print_trust(scores: Sequence[TrustScore], *, quiet: bool) -> None:
    """Print what the maps' own figures are worth, if they have any that can be held against the truth."""
    from mclst.evaluation.summary import print_table  # needs scikit-learn, which the figures do not

    rows = [score.row() for score in scores]
    if any(row.get(name) is not None for row in rows for name in ("covered", "gain", "expected_r")):
        say("What the map says of itself:", quiet=quiet)
        print_table(rows, HEADINGS, quiet=quiet, digits=3)
