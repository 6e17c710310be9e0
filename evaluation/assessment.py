"""What an evaluation says: leaks first, then the maps against baselines, then a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.evaluation.baselines.comparison import Compared, Comparison, compare
from mclst.evaluation.baselines.gather import TrainingData
from mclst.evaluation.baselines.predict import Baseline, Predict, predict_baselines
from mclst.evaluation.baselines.stain import Stain
from mclst.evaluation.evaluate import Evaluation, MethodResult
from mclst.evaluation.leakage import Leak, find_leaks
from mclst.evaluation.metrics.gene_sets import DEFINITIONS, GeneStatistics, listed_columns

ALL = "all"


@dataclass(frozen=True)
class Against:
    """One map against another prediction. kind: "baseline" or "map". made_of: see `Baseline`."""

    method: str
    other: str
    kind: str
    sees: str
    made_of: str
    of_set: Mapping[str, Comparison]


@dataclass(frozen=True)
class Assessment:
    """Outcome of an evaluation.

    Attributes
    ----------
    training : TrainingData
    leaks : tuple of Leak
    sets : mapping of name to columns
        Gene sets; "all" first.
    definitions : mapping of set to its definition
    against : tuple of Against
        Each method against each baseline, then against each other map.
    missing : tuple of Baseline
        Baselines that could not be made.
    """

    training: TrainingData
    leaks: tuple[Leak, ...]
    sets: Mapping[str, NDArray[np.intp]]
    definitions: Mapping[str, str]
    against: tuple[Against, ...]
    missing: tuple[Baseline, ...]

    @property
    def leaking(self) -> bool:
        """Whether training has seen something of the test."""
        return any(leak.severity == "leak" for leak in self.leaks)

    def table(self) -> pd.DataFrame:
        """One row per method, other prediction and gene set."""
        return pd.DataFrame(
            [
                {
                    "method": row.method,
                    "against": row.other,
                    "kind": row.kind,
                    "sees": row.sees,
                    "made_of": row.made_of,
                    "gene_set": name,
                    "genes": len(self.sets[name]),
                    "pcc": c.r_map,
                    "pcc_against": c.r_other,
                    "pcc_difference": c.r.value,
                    "pcc_low": c.r.low,
                    "pcc_high": c.r.high,
                    "mse": c.mse_map,
                    "mse_against": c.mse_other,
                    "mse_difference": c.mse.value,
                    "mse_low": c.mse.low,
                    "mse_high": c.mse.high,
                    "genes_better": c.better,
                    "outcome": c.outcome,
                    "resampled": c.resampled,
                }
                for row in self.against
                for name, c in row.of_set.items()
            ],
            columns=list(TABLE),
        )

    def as_json(self) -> dict[str, Any]:
        """Convert to plain values, without NaN."""
        table = self.table()
        return {
            "training": {
                "sections": list(self.training.names),
                "from": self.training.how,
                "known": self.training.sure,
            },
            "leaks": [asdict(leak) for leak in self.leaks],
            "gene_sets": dict(self.definitions),
            "against": table.astype(object).where(table.notna(), None).to_dict(orient="records"),
        }


TABLE = (
    "method", "against", "kind", "sees", "made_of", "gene_set", "genes", "pcc", "pcc_against",
    "pcc_difference", "pcc_low", "pcc_high", "mse", "mse_against", "mse_difference", "mse_low", "mse_high",
    "genes_better", "outcome", "resampled",
)  # fmt: skip


def check_leaks(data: TrainingData, genes: Sequence[str], stains: Mapping[str, Stain]) -> tuple[Leak, ...]:
    """Find what training has seen of any test section; see `find_leaks`."""
    leaks: list[Leak] = []
    for test in data.tests.values():
        leaks += find_leaks(
            test,
            data.sections,
            genes=genes,
            names=data.names,
            patients=data.patients,
            sure=data.sure,
            bank=data.bank,
            sentences=data.sentences,
            stains=stains,
        )
    return tuple(leaks)


def assess(
    evaluation: Evaluation,
    data: TrainingData,
    leaks: Sequence[Leak],
    *,
    stains: Mapping[str, Stain],
    listed: Mapping[str, Sequence[str]] | None = None,
    further: Mapping[str, tuple[str, Predict]] | None = None,
) -> Assessment:
    """Hold every map against baselines and the other maps.

    Parameters
    ----------
    evaluation : Evaluation
    data : TrainingData
    leaks : sequence of Leak
    stains : mapping of section to Stain
    listed : mapping of name to genes, optional
        Gene sets of one's own.
    further : mapping, optional
        Further baselines; see `predict_baselines`.

    Returns
    -------
    Assessment
    """
    genes = evaluation.methods[0].sections[0].pair.genes
    sets, definitions = _gene_sets(data, genes, listed or {})
    baselines = {
        name: predict_baselines(
            data.sections, test, relatives=data.relatives(name), stains=stains, further=further
        )
        if data.sections
        else []
        for name, test in data.tests.items()
    }
    against: list[Against] = []
    for method in evaluation.methods:
        against += _against_baselines(method, data, baselines, sets)
        against += [
            _against_map(method, other, data, sets) for other in evaluation.methods if other is not method
        ]
    every = next(iter(baselines.values()), [])
    missing = tuple(
        b for b in every if any(c.name == b.name and c.expression is None for c in _all(baselines))
    )
    return Assessment(data, tuple(leaks), sets, definitions, tuple(against), missing)


def _all(baselines: Mapping[str, Sequence[Baseline]]) -> list[Baseline]:
    return [baseline for own in baselines.values() for baseline in own]


def _gene_sets(
    data: TrainingData, genes: Sequence[str], listed: Mapping[str, Sequence[str]]
) -> tuple[dict[str, NDArray[np.intp]], dict[str, str]]:
    statistics = GeneStatistics(len(genes))
    for section in data.sections:
        statistics.add(section.counts, section.totals.spot, section.xy)
    sets = {ALL: np.arange(len(genes)), **statistics.choose()}
    definitions = {ALL: "all genes of the map", **{k: v for k, v in DEFINITIONS.items() if k in sets}}
    for name, own in listed.items():
        columns = listed_columns(genes, own)
        if len(columns):
            sets[name] = columns
            definitions[name] = f"{len(columns)} of the {len(own)} genes of the list {name}"
    return sets, definitions


def _against_baselines(
    method: MethodResult,
    data: TrainingData,
    baselines: Mapping[str, Sequence[Baseline]],
    sets: Mapping[str, NDArray[np.intp]],
) -> list[Against]:
    """Compare with each baseline that exists for all sections of the method."""
    rows = []
    names = [section.pair.section for section in method.sections]
    for first in baselines[names[0]]:
        own = {
            name: b.expression
            for name in names
            for b in baselines[name]
            if b.name == first.name and b.expression is not None
        }
        if len(own) < len(names):
            continue
        compared = []
        for section in method.sections:
            pair = section.pair
            spots = data.tests[pair.section].rows_of(pair.spot.tolist())
            group = data.patients.get(pair.section, pair.section)
            other = own[pair.section][spots]
            both = np.isfinite(other).all(axis=1)
            xy = None if pair.xy_px is None else pair.xy_px[both]
            if np.count_nonzero(both) >= 3:
                compared.append(Compared(pair.truth[both], pair.predicted[both], other[both], xy, group))
        if not compared:
            continue
        made_of = first.made_of if len(names) == 1 else f"{first.made_of} for {names[0]}, …"
        rows.append(
            Against(method.name, first.name, "baseline", first.sees, made_of, compare(compared, sets))
        )
    return rows


def _against_map(
    method: MethodResult, other: MethodResult, data: TrainingData, sets: Mapping[str, NDArray[np.intp]]
) -> Against:
    """Compare with another map over the sections and spots that both have."""
    pairs = {section.pair.section: section.pair for section in other.sections}
    compared = []
    for section in method.sections:
        pair = section.pair
        if pair.section not in pairs:
            continue
        shared, rows, others = np.intersect1d(pair.spot, pairs[pair.section].spot, return_indices=True)
        if len(shared) < 3:
            continue
        xy = None if pair.xy_px is None else pair.xy_px[rows]
        group = data.patients.get(pair.section, pair.section)
        predicted = pairs[pair.section].predicted[others]
        compared.append(Compared(pair.truth[rows], pair.predicted[rows], predicted, xy, group))
    of_set = compare(compared, sets) if compared else {}
    return Against(method.name, other.name, "map", "another map", "", of_set)
