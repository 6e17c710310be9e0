"""Evaluate maps against measured sections: scores, gene ranking, co-expression, domains, overlap."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.evaluation.coexpression import Coexpression, compare_coexpression
from mclst.evaluation.domains import Agreement, compare_groupings, find_domains
from mclst.evaluation.overlap import bonferroni_threshold, intersections, predicted_genes
from mclst.evaluation.significance import rank_genes
from mclst.runtime.expression_map.measured import Pair, check_comparable
from mclst.sections.accuracy import Score, score

MEASURES = ("pcc_acg", "pcc_heg", "mse", "mae")
DEFINITIONS = (
    "PCC (ACG)  Pearson r per gene over the spots, mean over all genes with a defined r",
    "PCC (HEG)  the same over the 50 genes with the highest mean in the truth; undefined if one r is",
    "MSE, MAE   mean squared and absolute error over all spots and genes, in the map's units",
    "mean       mean over the sections with equal weights",
    "-log10 p   of each gene's r (two-sided), mean over the sections; the sign of r is ignored",
    "genes      Pearson r between the gene-gene correlations of prediction and truth, over all pairs",
)
"""Definitions of the printed measures, as in the published scripts."""


@dataclass(frozen=True)
class Domains:
    """Spatial domains of one section.

    predicted, measured: int64 [n], domain of each spot.
    region: str [n], annotated region, "" for none; None without annotation.
    against: reference of the comparison, "annotation" or "measured".
    of_predicted, of_measured: agreement with the reference; of_measured is None if it is the reference.
    """

    predicted: NDArray[np.int64]
    measured: NDArray[np.int64]
    region: NDArray[np.str_] | None
    against: str
    of_predicted: Agreement
    of_measured: Agreement | None


@dataclass(frozen=True)
class SectionResult:
    """One section of one method. constant_mse: MSE of predicting each gene's mean over the truth."""

    pair: Pair
    score: Score
    constant_mse: float
    coexpression: Coexpression
    domains: Domains | None = None


@dataclass(frozen=True)
class MethodResult:
    """All sections of one method. ranked: see `rank_genes`. predicted: see `predicted_genes`."""

    name: str
    sections: tuple[SectionResult, ...]
    ranked: pd.DataFrame
    predicted: frozenset[str]

    def mean(self, measure: str) -> float:
        """Mean of a Score's measure over the sections; NaN if one of them is."""
        return float(np.mean([getattr(section.score, measure) for section in self.sections]))

    @property
    def coexpression(self) -> float:
        """Mean agreement of gene-gene correlations over the sections."""
        return float(np.mean([section.coexpression.agreement for section in self.sections]))


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of maps. threshold: minimum −log10 p of a predicted gene. overlap: see `intersections`."""

    methods: tuple[MethodResult, ...]
    threshold: float
    overlap: Mapping[tuple[str, ...], frozenset[str]] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Scores: one row per method and section, and a mean row per method with several sections."""
        rows: list[dict[str, Any]] = []
        for method in self.methods:
            for section in method.sections:
                rows.append(
                    {
                        "method": method.name,
                        "section": section.pair.section,
                        "spots": section.score.spots,
                        "genes": len(section.pair.genes),
                        **{name: getattr(section.score, name) for name in MEASURES},
                        "coexpression": section.coexpression.agreement,
                        **_domain_columns(section.domains),
                    }
                )
            if len(method.sections) > 1:
                rows.append(
                    {
                        "method": method.name,
                        "section": "mean",
                        "spots": sum(section.score.spots for section in method.sections),
                        "genes": len(method.sections[0].pair.genes),
                        **{name: method.mean(name) for name in MEASURES},
                        "coexpression": method.coexpression,
                        **_mean_columns([_domain_columns(section.domains) for section in method.sections]),
                    }
                )
        return pd.DataFrame(rows)

    def genes(self) -> pd.DataFrame:
        """Gene rankings of all methods, concatenated."""
        return pd.concat([m.ranked.assign(method=m.name) for m in self.methods], ignore_index=True)[
            ["method", "rank", "gene", "minus_log10_p", "pcc", "sections"]
        ]

    def as_json(self) -> dict[str, Any]:
        """Convert to plain values; NaN and infinity become null."""
        return {
            "definitions": list(DEFINITIONS),
            "normalisation": self.methods[0].sections[0].pair.normalization,
            "methods": {method.name or "map": _method_json(method) for method in self.methods},
            "predicted_genes": {
                "least_minus_log10_p": self.threshold,
                "parts": [{"in": list(part), "genes": sorted(genes)} for part, genes in self.overlap.items()],
            },
        }


def evaluate(
    pairs: Sequence[Pair],
    *,
    domains: int | None = None,
    regions: Mapping[tuple[str, str], NDArray[np.str_]] | None = None,
    gene_set: Collection[str] | None = None,
    threshold: float | None = None,
) -> Evaluation:
    """Evaluate maps of one or more sections by one or more methods.

    Parameters
    ----------
    pairs : sequence of Pair
        Predicted and measured expression of each section and method.
    domains : int, optional
        Number of spatial domains. Default: as many as a section has regions; without regions, none.
    regions : mapping of (method, section) to ndarray of str, optional
        Annotated region of each spot of the pair, "" for none.
    gene_set : collection of str, optional
        Compare the methods' predicted genes only within this set.
    threshold : float, optional
        Minimum −log10 p of a predicted gene. Default: Bonferroni-corrected 0.05.

    Returns
    -------
    Evaluation

    Raises
    ------
    InputError
        If the pairs differ in genes or normalization, or one section occurs twice for a method.
    ValueError
        If there are more domains than spots.
    """
    check_comparable(pairs)
    pairs = [_in_order(pair, pairs[0].genes) for pair in pairs]
    threshold = bonferroni_threshold(len(pairs[0].genes)) if threshold is None else threshold
    methods = []
    for name in dict.fromkeys(pair.method for pair in pairs):
        sections = tuple(
            _section(p, domains, (regions or {}).get((p.method, p.section)))
            for p in pairs
            if p.method == name
        )
        ranked = rank_genes(
            pairs[0].genes, [s.score.pcc_per_gene for s in sections], [s.score.spots for s in sections]
        )
        methods.append(MethodResult(name, sections, ranked, predicted_genes(ranked, threshold, gene_set)))
    return Evaluation(
        tuple(methods), threshold, intersections({m.name or "map": m.predicted for m in methods})
    )


def _in_order(pair: Pair, genes: tuple[str, ...]) -> Pair:
    if pair.genes == genes:
        return pair
    column_of = {gene: i for i, gene in enumerate(pair.genes)}
    columns = [column_of[gene] for gene in genes]
    return dataclasses.replace(
        pair, genes=genes, predicted=pair.predicted[:, columns], truth=pair.truth[:, columns]
    )


def _section(pair: Pair, count: int | None, region: NDArray[np.str_] | None) -> SectionResult:
    domains = None
    if region is not None:
        count = len(np.unique(region[region != ""])) if count is None else count
    if count is not None:
        domains = _domains(pair, count, region)
    return SectionResult(
        pair,
        score(pair.predicted, pair.truth),
        float(np.square(pair.truth - pair.truth.mean(axis=0)).mean()),
        compare_coexpression(pair.predicted, pair.truth),
        domains,
    )


def _domains(pair: Pair, count: int, region: NDArray[np.str_] | None) -> Domains:
    predicted, measured = (find_domains(values, count) for values in (pair.predicted, pair.truth))
    if region is None:
        return Domains(predicted, measured, None, "measured", compare_groupings(predicted, measured), None)
    labeled = region != ""
    against = (compare_groupings(labels[labeled], region[labeled]) for labels in (predicted, measured))
    return Domains(predicted, measured, region, "annotation", *against)


def _domain_columns(domains: Domains | None) -> dict[str, Any]:
    if domains is None:
        return {}
    return {"ari": domains.of_predicted.ari, "nmi": domains.of_predicted.nmi}


def _mean_columns(sections: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the sections with domains."""
    present = [columns for columns in sections if columns]
    return {
        name: float(np.mean([columns[name] for columns in present]))
        for name in (present[0] if present else ())
    }


def _method_json(method: MethodResult) -> dict[str, Any]:
    return {
        "mean": {
            **{name: _number(method.mean(name)) for name in MEASURES},
            "coexpression": _number(method.coexpression),
        },
        "sections": {section.pair.section: _section_json(section) for section in method.sections},
        "genes": [
            {name: _number(value) if isinstance(value, float) else value for name, value in row.items()}
            for row in method.ranked.to_dict(orient="records")
        ],
        "predicted_genes": sorted(method.predicted),
    }


def _section_json(section: SectionResult) -> dict[str, Any]:
    pair, domains = section.pair, section.domains
    r = zip(pair.genes, section.score.pcc_per_gene.tolist(), strict=True)
    plain: dict[str, Any] = {
        "map_spots": section.score.spots,
        "only_in_map": pair.only_in_map,
        "only_in_truth": pair.only_in_truth,
        "without_tile": pair.without_tile,
        "left_out_genes": pair.left_out_genes,
        "genes_without_r": section.score.undefined,
        **{name: _number(getattr(section.score, name)) for name in MEASURES},
        "mse_of_own_gene_means": section.constant_mse,
        "coexpression": {
            "agreement": _number(section.coexpression.agreement),
            "rms_difference": _number(section.coexpression.rms_difference),
            "pairs": section.coexpression.pairs,
        },
        "pcc_per_gene": {gene: _number(value) for gene, value in r},
    }
    if domains is not None:
        plain["domains"] = {
            "count": int(domains.predicted.max()) + 1,
            "against": domains.against,
            "predicted": dataclasses.asdict(domains.of_predicted),
            "measured": None if domains.of_measured is None else dataclasses.asdict(domains.of_measured),
            "of_spot": dict(zip(pair.spot.tolist(), domains.predicted.tolist(), strict=True)),
        }
    return plain


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
