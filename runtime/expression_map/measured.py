"""A predicted map beside the measured section it is of: the same spots and genes, in the same units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import InputError
from mclst.runtime.expression_map.reader import Map
from mclst.sections.formats.reference import find_sections, read_section
from mclst.sections.formats.source import SectionSource
from mclst.sections.normalize import NORMALIZATIONS, normalize
from mclst.sections.section import Section
from mclst.sections.tables.genes import match_genes


@dataclass(frozen=True)
class Predicted:
    """A map as it was read.

    expression: float64 [n, G], rows of unreadable tiles NaN. xy_px: float64 [n, 2] level-0 px, or None.
    slide: names the map gives its slide. normalisation: of its expression, None where the map does not tell.
    """

    path: Path
    spot: NDArray[np.str_]
    genes: NDArray[np.str_]
    expression: NDArray[np.float64]
    xy_px: NDArray[np.float64] | None
    slide: tuple[str, ...]
    normalisation: str | None


@dataclass(frozen=True)
class Pair:
    """One section, predicted and measured: n spots, G genes.

    predicted, truth: float64 [n, G], the truth normalised as the map is. spot: str [n]. xy_px: float64 [n, 2] or None.
    normalisation: of both. only_in_map, only_in_truth: spots that the other does not have; without_tile: spots whose
    prediction is NaN. None of these is among the n. left_out_genes: of the map, not measured.
    """

    method: str
    section: str
    genes: tuple[str, ...]
    spot: NDArray[np.str_]
    predicted: NDArray[np.float64]
    truth: NDArray[np.float64]
    xy_px: NDArray[np.float64] | None
    normalisation: str
    only_in_map: int
    only_in_truth: int
    without_tile: int
    left_out_genes: int


def read_map(path: Path) -> Predicted:
    """Read a map of mclst-infer, or any .h5ad with spots in rows; InputError where it is none."""
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a map of mclst-infer")
    try:
        found = anndata.read_h5ad(path)
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise InputError(
            f"{path} is not a map ({_first_line(error)}); give an .h5ad of mclst-infer"
        ) from error
    if found.X is None:
        raise InputError(f"{path} has no X; give an .h5ad of mclst-infer")
    matrix = found.X.toarray() if hasattr(found.X, "toarray") else found.X
    names, genes = (index.to_numpy().astype(np.str_) for index in (found.obs_names, found.var_names))
    for what, held in (("spot", names), ("gene", genes)):
        if len(np.unique(held)) < len(held):
            raise InputError(f"{path}: a {what} stands there twice; keep one")
    said = found.uns.get("mclst", {})
    bundle = said.get("bundle", {}) if isinstance(said, dict) else {}
    spatial = found.uns.get("spatial", {})
    xy_px = np.asarray(found.obsm["spatial"], np.float64) if "spatial" in found.obsm else None
    return Predicted(
        path=path,
        spot=names,
        genes=genes,
        expression=np.asarray(matrix, np.float64),
        xy_px=xy_px if xy_px is not None and xy_px.shape == (len(names), 2) else None,
        slide=tuple(spatial) if isinstance(spatial, dict) else (),
        normalisation=str(bundle["normalisation_expression"])
        if "normalisation_expression" in bundle
        else None,
    )


def choose_section(predicted: Predicted, truth: Path, name: str | None) -> SectionSource:
    """The measured section of a map: the one named, else the only one, else that called as the map or its slide.

    Raises InputError where none is or several are, SectionError where the truth holds no section.
    """
    found = find_sections(truth)
    listed = ", ".join(found) if len(found) <= 12 else f"{', '.join(list(found)[:10])}, …"
    if name is not None:
        if name not in found:
            raise InputError(f"{truth} has no section {name}; there are {listed}")
        return found[name]
    if len(found) == 1:
        return next(iter(found.values()))
    called = dict.fromkeys((predicted.path.stem, *predicted.slide))
    fitting = [found[own] for own in called if own in found]
    if len(fitting) != 1:
        raise InputError(
            f"which section of {truth} {predicted.path} is of cannot be told; give --section, one of {listed}"
        )
    return fitting[0]


def pair_with_truth(
    predicted: Predicted,
    source: SectionSource,
    *,
    method: str = "",
    normalisation: str | None = None,
    common_genes: bool = False,
) -> Pair:
    """Line a map up with its measured section, spot by spot by name; the truth is normalised over its whole section.

    normalisation: of the truth, None for the map's own. common_genes: leave out the map's genes that were not
    measured instead of refusing them.
    Raises InputError where the units are not known, spots or genes have nothing in common, or a value is not finite;
    SectionError where the section is damaged or lacks genes.
    """
    section = read_section(source)
    unit = _unit(predicted, normalisation)
    genes = predicted.genes
    if common_genes:
        genes = genes[np.isin(genes, section.genes)]
        if not len(genes):
            raise InputError(f"{predicted.path} and section {section.name} have no gene in common")
    counts = match_genes(section, genes.tolist())
    truth = np.asarray(normalize(unit, counts, section.total, len(section.genes)), np.float64)
    columns = np.flatnonzero(np.isin(predicted.genes, genes))
    rows, of_truth = _shared_spots(predicted, section)
    expression = predicted.expression[np.ix_(rows, columns)]
    present = np.asarray(~np.isnan(expression).all(axis=1))
    rows, of_truth, expression = rows[present], of_truth[present], expression[present]
    if not np.isfinite(expression).all():
        row, column = np.argwhere(~np.isfinite(expression))[0]
        raise InputError(
            f"{predicted.path}: spot {predicted.spot[rows[row]]} has {expression[row, column]} for {genes[column]}; "
            "a map has finite values, or NaN in a whole row"
        )
    if len(rows) < 2:
        raise InputError(
            f"{predicted.path} predicts {len(rows)} spots of section {section.name}; two are needed"
        )
    shared = len(present)
    return Pair(
        method=method,
        section=section.name,
        genes=tuple(genes.tolist()),
        spot=predicted.spot[rows],
        predicted=expression,
        truth=truth[of_truth],
        xy_px=None if predicted.xy_px is None else predicted.xy_px[rows],
        normalisation=unit,
        only_in_map=len(predicted.spot) - shared,
        only_in_truth=len(section) - shared,
        without_tile=int(np.count_nonzero(~present)),
        left_out_genes=len(predicted.genes) - len(genes),
    )


def _unit(predicted: Predicted, given: str | None) -> str:
    unit = given or predicted.normalisation
    if unit is None or unit not in NORMALIZATIONS:
        told = "does not say how its expression is normalised" if unit is None else f"is normalised {unit!r}"
        raise InputError(
            f"{predicted.path} {told}; give --normalisation, one of {', '.join(NORMALIZATIONS)}, for the truth"
        )
    return unit


def _shared_spots(predicted: Predicted, section: Section) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the map, in its order, that the section has, and their rows there."""
    _, rows, of_truth = np.intersect1d(predicted.spot, section.spot, return_indices=True)
    if not len(rows):
        raise InputError(
            f"{predicted.path} and section {section.name} have no spot in common ({predicted.spot[0]}, …; "
            f"{section.spot[0]}, …); give --section, or a map with the section's spot names"
        )
    order = np.argsort(rows)
    return rows[order], of_truth[order]


def _first_line(error: BaseException) -> Any:
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_same(pairs: Sequence[Pair]) -> None:
    """Refuse maps that cannot be averaged or compared.

    Raises InputError where a method has a section twice, or maps differ in genes or normalisation.
    """
    seen: set[tuple[str, str]] = set()
    for pair in pairs:
        if (pair.method, pair.section) in seen:
            raise InputError(
                f"two maps are of section {pair.section}; tell them apart as METHOD=MAP, or give --section for each"
            )
        seen.add((pair.method, pair.section))
        for name, own, first in (
            ("genes", set(pair.genes), set(pairs[0].genes)),
            ("normalisation", pair.normalisation, pairs[0].normalisation),
        ):
            if own != first:
                raise InputError(
                    f"the maps of {pairs[0].section} and {pair.section} differ in {name}; evaluate them apart"
                )


def measured_for(
    found: Map, truth: Path, section: str | None = None, normalisation: str | None = None
) -> NDArray[np.float32]:
    """What was measured of a map's section, float32 [n, G] in the map's order of spots and genes, NaN where it was not.

    truth, section: as in choose_section; normalisation: as in pair_with_truth, whose errors are raised too.
    """
    predicted = Predicted(
        path=found.path,
        spot=np.array(found.spots),
        genes=np.array(found.genes),
        expression=np.asarray(found.expression[:], np.float64),
        xy_px=found.xy_px,
        slide=(found.title,),
        normalisation=found.told.get("bundle", {}).get("normalisation_expression"),
    )
    source = choose_section(predicted, truth, section)
    pair = pair_with_truth(predicted, source, normalisation=normalisation, common_genes=True)
    row = {name: i for i, name in enumerate(found.spots)}
    column = {gene: i for i, gene in enumerate(found.genes)}
    measured = np.full((len(row), len(column)), np.nan, np.float32)
    measured[np.ix_([row[str(name)] for name in pair.spot], [column[gene] for gene in pair.genes])] = (
        pair.truth
    )
    return measured
