"""Evaluate maps against measured sections: scores, gene ranking, co-expression, domains, overlap."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.evaluation.headings import DEFINITIONS
from mclst.evaluation.metrics.coexpression import Coexpression, compare_coexpression
from mclst.evaluation.metrics.domains import Agreement, compare_groupings, find_domains
from mclst.evaluation.metrics.over_sections import genes_over_sections, pooled_pearson
from mclst.evaluation.metrics.overlap import bonferroni_threshold, intersections, predicted_genes
from mclst.evaluation.metrics.per_gene import FDR_LEVEL, headline, measure_genes
from mclst.evaluation.metrics.significance import rank_genes
from mclst.runtime.expression_map.measured import Pair, check_comparable
from mclst.sections.accuracy import Score, score

MEASURES = ("pcc_acg", "pcc_heg", "mse", "mae")


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
    """One section of one method.

    constant_mse: MSE of predicting each gene's mean over the truth. genes: see `measure_genes`.
    """

    pair: Pair
    score: Score
    constant_mse: float
    coexpression: Coexpression
    genes: pd.DataFrame
    domains: Domains | None = None

    @cached_property
    def headline(self) -> dict[str, float]:
        """Measures over all genes; see `headline`."""
        return headline(self.genes)


@dataclass(frozen=True)
class MethodResult:
    """All sections of one method.

    ranked: see `rank_genes`, with the columns of `genes_over_sections`. predicted: see `predicted_genes`.
    """

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

    @cached_property
    def pooled(self) -> float:
        """Pearson r over the spots of all sections together; see `pooled_pearson`."""
        pairs = [section.pair for section in self.sections]
        return pooled_pearson([pair.predicted for pair in pairs], [pair.truth for pair in pairs])

    @property
    def significant(self) -> int:
        """Number of genes with mean r > 0 and a corrected false discovery rate of at most 5 %."""
        return int(((self.ranked["fdr"] <= FDR_LEVEL) & (self.ranked["pcc"] > 0)).sum())


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
                        **section.headline,
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
                        **_mean_columns([section.headline for section in method.sections]),
                        "pcc_pooled": method.pooled,
                    }
                )
        return pd.DataFrame(rows)

    def genes(self) -> pd.DataFrame:
        """Gene rankings of all methods, concatenated."""
        rankings = pd.concat([m.ranked.assign(method=m.name) for m in self.methods], ignore_index=True)
        return rankings[["method", *rankings.columns.drop("method")]]

    def as_json(self) -> dict[str, Any]:
        """Convert to plain values; NaN and infinity become null."""
        return {
            "definitions": list(DEFINITIONS),
            "normalization": self.methods[0].sections[0].pair.normalization,
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
    covariates: Mapping[tuple[str, str], NDArray[np.float64]] | None = None,
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
    covariates : mapping of (method, section) to ndarray of float64 [n, C], optional
        What the partial correlation is given beside the spots' total counts.
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
            _section(p, domains, (regions or {}).get(key), (covariates or {}).get(key))
            for p in pairs
            if (key := (p.method, p.section))[0] == name
        )
        ranked = rank_genes(
            pairs[0].genes, [s.score.pcc_per_gene for s in sections], [s.score.spots for s in sections]
        )
        ranked = ranked.join(genes_over_sections(pairs[0].genes, [s.genes for s in sections]), on="gene")
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


def _section(
    pair: Pair,
    count: int | None,
    region: NDArray[np.str_] | None,
    covariates: NDArray[np.float64] | None,
) -> SectionResult:
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
        measure_genes(pair.predicted, pair.truth, pair.xy_px, _given(pair, covariates)),
        domains,
    )


def _given(pair: Pair, covariates: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """Covariates of the partial correlation: the spots' total counts (log), and `covariates`."""
    given = [] if pair.total is None else [np.log1p(pair.total)[:, None]]
    given += [] if covariates is None else [covariates]
    return np.concatenate(given, axis=1) if given else None


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
    """Means over the sections that have the columns."""
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
            "genes_fdr_5": method.significant,
            **({"pcc_pooled": _number(method.pooled)} if len(method.sections) > 1 else {}),
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
        **{name: _number(value) for name, value in section.headline.items()},
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
