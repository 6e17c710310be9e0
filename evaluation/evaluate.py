"""All figures of merit of one or more maps: scores, gene ranking, co-expression, domains, overlap."""

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
from mclst.evaluation.domains import Agreement, agree, find_domains
from mclst.evaluation.overlap import intersections, predicted_genes, threshold
from mclst.evaluation.significance import rank_genes
from mclst.runtime.expression_map.measured import Pair, check_same
from mclst.sections.accuracy import Score, score

MEASURES = ("pcc_acg", "pcc_heg", "mse", "mae")
DEFINITIONS = (
    "PCC (ACG)  Pearson r per gene over the spots, mean over all genes that have one",
    "PCC (HEG)  the same over the 50 genes with the highest mean in the section's truth, none left out",
    "MSE, MAE   mean squared and absolute error over all spots and genes, in the map's units",
    "mean       of the sections, each counting once",
    "-log10 p   of each gene's r (two-sided), mean over the sections; the sign of r plays no part",
    "genes      Pearson r between the gene-gene correlations of prediction and truth, over all pairs",
)
"""How the published scripts define what is printed."""


@dataclass(frozen=True)
class Domains:
    """Domains of one section; int64 [n] each, region str [n], "" where a spot has none, or None without annotation.

    against: what `of_predicted` was compared with, "annotation" or "measured".
    of_predicted, of_measured: agreement of each with `against`; of_measured is None where it is itself that.
    """

    predicted: NDArray[np.int64]
    measured: NDArray[np.int64]
    region: NDArray[np.str_] | None
    against: str
    of_predicted: Agreement
    of_measured: Agreement | None


@dataclass(frozen=True)
class SectionResult:
    """One section of one method. constant_mse: of predicting each gene's own mean over the section's truth."""

    pair: Pair
    score: Score
    constant_mse: float
    coexpression: Coexpression
    domains: Domains | None = None


@dataclass(frozen=True)
class MethodResult:
    """All sections of one method. ranked: see rank_genes. predicted: genes that count as predicted (overlap.py)."""

    name: str
    sections: tuple[SectionResult, ...]
    ranked: pd.DataFrame
    predicted: frozenset[str]

    def mean(self, measure: str) -> float:
        """Plain mean of a Score's measure over the sections; NaN where one of them is."""
        return float(np.mean([getattr(section.score, measure) for section in self.sections]))

    @property
    def coexpression(self) -> float:
        """Mean agreement of the gene-gene correlations over the sections."""
        return float(np.mean([section.coexpression.agreement for section in self.sections]))


@dataclass(frozen=True)
class Evaluation:
    """What the maps are worth. least: the −log10 p that a predicted gene has at least."""

    methods: tuple[MethodResult, ...]
    least: float
    overlap: Mapping[tuple[str, ...], frozenset[str]] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """One row per method and section, and a mean row per method of several sections."""
        rows: list[dict[str, Any]] = []
        for method in self.methods:
            for found in method.sections:
                rows.append(
                    {
                        "method": method.name,
                        "section": found.pair.section,
                        "spots": found.score.spots,
                        "genes": len(found.pair.genes),
                        **{name: getattr(found.score, name) for name in MEASURES},
                        "coexpression": found.coexpression.agreement,
                        **_domain_columns(found.domains),
                    }
                )
            if len(method.sections) > 1:
                rows.append(
                    {
                        "method": method.name,
                        "section": "mean",
                        "spots": sum(found.score.spots for found in method.sections),
                        "genes": len(method.sections[0].pair.genes),
                        **{name: method.mean(name) for name in MEASURES},
                        "coexpression": method.coexpression,
                        **_mean_columns([_domain_columns(found.domains) for found in method.sections]),
                    }
                )
        return pd.DataFrame(rows)

    def genes(self) -> pd.DataFrame:
        """The ranking of every method, one below the other."""
        return pd.concat([m.ranked.assign(method=m.name) for m in self.methods], ignore_index=True)[
            ["method", "rank", "gene", "minus_log10_p", "pcc", "sections"]
        ]

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is not a number is null."""
        return {
            "definitions": list(DEFINITIONS),
            "normalisation": self.methods[0].sections[0].pair.normalisation,
            "methods": {method.name or "map": _method_json(method) for method in self.methods},
            "predicted_genes": {
                "least_minus_log10_p": self.least,
                "parts": [{"in": list(part), "genes": sorted(genes)} for part, genes in self.overlap.items()],
            },
        }


def evaluate(
    pairs: Sequence[Pair],
    *,
    domains: int | None = None,
    regions: Mapping[tuple[str, str], NDArray[np.str_]] | None = None,
    among: Collection[str] | None = None,
    least: float | None = None,
) -> Evaluation:
    """Evaluate maps of one or more sections by one or more methods.

    domains: how many to look for; None for as many as a section has regions, and none without. regions: label of each
    spot, by method and section (as `pair.spot`). among: only these genes are compared between methods. least: −log10 p from which
    a gene counts as predicted, None for the Bonferroni threshold.
    Raises InputError as check_same does; ValueError where there are more domains than spots.
    """
    check_same(pairs)
    pairs = [_in_order(pair, pairs[0].genes) for pair in pairs]
    least = threshold(len(pairs[0].genes)) if least is None else least
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
        methods.append(MethodResult(name, sections, ranked, predicted_genes(ranked, least, among)))
    return Evaluation(tuple(methods), least, intersections({m.name or "map": m.predicted for m in methods}))


def _in_order(pair: Pair, genes: tuple[str, ...]) -> Pair:
    if pair.genes == genes:
        return pair
    place = {gene: i for i, gene in enumerate(pair.genes)}
    columns = [place[gene] for gene in genes]
    return dataclasses.replace(
        pair, genes=genes, predicted=pair.predicted[:, columns], truth=pair.truth[:, columns]
    )


def _section(pair: Pair, count: int | None, region: NDArray[np.str_] | None) -> SectionResult:
    found = None
    if region is not None:
        count = len(np.unique(region[region != ""])) if count is None else count
    if count is not None:
        found = _domains(pair, count, region)
    return SectionResult(
        pair,
        score(pair.predicted, pair.truth),
        float(np.square(pair.truth - pair.truth.mean(axis=0)).mean()),
        compare_coexpression(pair.predicted, pair.truth),
        found,
    )


def _domains(pair: Pair, count: int, region: NDArray[np.str_] | None) -> Domains:
    predicted, measured = (find_domains(values, count) for values in (pair.predicted, pair.truth))
    if region is None:
        return Domains(predicted, measured, None, "measured", agree(predicted, measured), None)
    known = region != ""
    against = (agree(found[known], region[known]) for found in (predicted, measured))
    return Domains(predicted, measured, region, "annotation", *against)


def _domain_columns(found: Domains | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {"ari": found.of_predicted.ari, "nmi": found.of_predicted.nmi}


def _mean_columns(of_sections: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the sections that have domains."""
    have = [columns for columns in of_sections if columns]
    return {name: float(np.mean([columns[name] for columns in have])) for name in (have[0] if have else ())}


def _method_json(method: MethodResult) -> dict[str, Any]:
    return {
        "mean": {
            **{name: _number(method.mean(name)) for name in MEASURES},
            "coexpression": _number(method.coexpression),
        },
        "sections": {found.pair.section: _section_json(found) for found in method.sections},
        "genes": [
            {name: _number(value) if isinstance(value, float) else value for name, value in row.items()}
            for row in method.ranked.to_dict(orient="records")
        ],
        "predicted_genes": sorted(method.predicted),
    }


def _section_json(found: SectionResult) -> dict[str, Any]:
    pair, domains = found.pair, found.domains
    r = zip(pair.genes, found.score.pcc_per_gene.tolist(), strict=True)
    plain: dict[str, Any] = {
        "map_spots": found.score.spots,
        "only_in_map": pair.only_in_map,
        "only_in_truth": pair.only_in_truth,
        "without_tile": pair.without_tile,
        "left_out_genes": pair.left_out_genes,
        "genes_without_r": found.score.undefined,
        **{name: _number(getattr(found.score, name)) for name in MEASURES},
        "mse_of_own_gene_means": found.constant_mse,
        "coexpression": {
            "agreement": _number(found.coexpression.agreement),
            "rms_difference": _number(found.coexpression.spread),
            "pairs": found.coexpression.pairs,
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
