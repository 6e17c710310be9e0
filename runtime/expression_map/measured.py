"""Pair a predicted map with its measured section: same spots, same genes, same unit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import InputError
from mclst.runtime.expression_map.reader import Map
from mclst.sections.errors import pass_out_of_memory
from mclst.sections.formats.reference import find_sections, read_section
from mclst.sections.formats.source import SectionSource
from mclst.sections.hdf5 import check_hdf5, check_sparse
from mclst.sections.normalize import NORMALIZATIONS, SectionTotals, normalize
from mclst.sections.section import Section
from mclst.sections.tables.genes import counts_notes, gene_columns, match_genes


@dataclass(frozen=True)
class Prediction:
    """A predicted map in memory.

    expression: float64 [n, G]; rows of unreadable tiles are NaN. xy_px: float64 [n, 2] level-0 px, or None.
    slide: the map's names of its slide. normalization: of the expression, None if the map does not name it.
    mpp: µm per level-0 px of the slide, None if the map does not say.
    """

    path: Path
    spot: NDArray[np.str_]
    genes: NDArray[np.str_]
    expression: NDArray[np.float64]
    xy_px: NDArray[np.float64] | None
    slide: tuple[str, ...]
    normalization: str | None
    mpp: float | None = None


@dataclass(frozen=True)
class Pair:
    """One section, predicted and measured: n spots, G genes.

    Attributes
    ----------
    genes : tuple of str [G]
    spot : str [n]
        Spots that have a prediction and a measurement.
    predicted, truth : float64 [n, G]
    xy_px : float64 [n, 2] or None
        Spot centers, level-0 px.
    normalization : str
        Of both.
    only_in_map, only_in_truth : int
        Spots that the other lacks; not among the n.
    without_tile : int
        Spots whose prediction is NaN; not among the n.
    left_out_genes : int
        Genes of the map that were not measured.
    total : float64 [n] or None
        Counts of each spot over all measured genes.
    notes : tuple of str
        What is unusual of the measured values.
    """

    method: str
    section: str
    genes: tuple[str, ...]
    spot: NDArray[np.str_]
    predicted: NDArray[np.float64]
    truth: NDArray[np.float64]
    xy_px: NDArray[np.float64] | None
    normalization: str
    only_in_map: int
    only_in_truth: int
    without_tile: int
    left_out_genes: int
    total: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()


def read_map(path: Path) -> Prediction:
    """Read a map of mclst-infer, or any .h5ad with spots in rows; raises InputError otherwise."""
    if not os.path.isfile(path):
        raise InputError(f"{path} is not a file; give a map of mclst-infer")
    try:
        with h5py.File(path, "r") as file:
            check_hdf5(file)
        data = anndata.read_h5ad(path)
        check_sparse(data.X)
    except Exception as error:
        pass_out_of_memory(error)
        raise InputError(
            f"{path} is not a map ({_first_line(error)}); give an .h5ad of mclst-infer"
        ) from error
    if data.X is None:
        raise InputError(f"{path} has no X; give an .h5ad of mclst-infer")
    matrix = data.X.toarray() if hasattr(data.X, "toarray") else data.X
    spot, genes = (index.to_numpy().astype(np.str_) for index in (data.obs_names, data.var_names))
    for kind, names in (("spot", spot), ("gene", genes)):
        if len(np.unique(names)) < len(names):
            raise InputError(f"{path}: a {kind} occurs twice; keep one")
    provenance = data.uns.get("mclst", {})
    bundle = provenance.get("bundle", {}) if isinstance(provenance, dict) else {}
    spatial = data.uns.get("spatial", {})
    xy_px = np.asarray(data.obsm["spatial"], np.float64) if "spatial" in data.obsm else None
    normalization = unit_of(bundle)
    return Prediction(
        path=path,
        spot=spot,
        genes=genes,
        expression=np.asarray(matrix, np.float64),
        xy_px=xy_px if xy_px is not None and xy_px.shape == (len(spot), 2) else None,
        slide=tuple(spatial) if isinstance(spatial, dict) else (),
        normalization=None if normalization is None else str(normalization),
        mpp=_mpp(provenance),
    )


def unit_of(bundle: Mapping[str, Any]) -> Any:
    """What a map's record of its bundle says of the expression's normalization; None if nothing."""
    return bundle.get("normalization_expression", bundle.get("normalisation_expression"))  # earlier maps


def _mpp(provenance: Any) -> float | None:
    slide = provenance.get("slide") if isinstance(provenance, dict) else None
    mpp = slide.get("mpp") if isinstance(slide, dict) else None
    return float(mpp) if isinstance(mpp, int | float | np.number) and 0.01 <= mpp <= 100 else None


def choose_section(
    predicted: Prediction, truth: Path, name: str | None, bins: str | None = None
) -> SectionSource:
    """Find a map's section: the one named, else the only one, else the one named like the map or slide.

    bins: see `find_sections`.
    Raises InputError if none or several match, SectionError if the truth holds no section.
    """
    sections = find_sections(truth, bins)
    listed = ", ".join(sections) if len(sections) <= 12 else f"{', '.join(list(sections)[:10])}, …"
    if name is not None:
        if name not in sections:
            raise InputError(f"{truth} has no section {name}; there are {listed}")
        return sections[name]
    if len(sections) == 1:
        return next(iter(sections.values()))
    names = dict.fromkeys((predicted.path.stem, *predicted.slide))
    matches = [sections[name] for name in names if name in sections]
    if len(matches) != 1:
        raise InputError(
            f"cannot tell which section of {truth} {predicted.path} predicts; give --section, one of {listed}"
        )
    return matches[0]


def pair_with_truth(
    predicted: Prediction,
    source: SectionSource,
    *,
    method: str = "",
    normalization: str | None = None,
    common_genes: bool = False,
    aliases: Path | None = None,
) -> Pair:
    """Match a map with its measured section by spot and gene names.

    Parameters
    ----------
    predicted : Prediction
    source : SectionSource
        The measured section; it is normalized over all its spots and genes.
    method : str
        Name of the method that made the map.
    normalization : str, optional
        Of the truth; None: the map's.
    common_genes : bool
        Leave out the map's genes that were not measured, instead of refusing them.
    aliases : Path, optional
        Table of gene symbols and their other names; see `read_aliases`.

    Returns
    -------
    Pair

    Raises
    ------
    InputError
        If the normalization is unknown, spots or genes have nothing in common, or a value is not finite.
    SectionError
        If the section is damaged or lacks genes.
    """
    section = read_section(replace(source, aliases=aliases))
    unit = _unit(predicted, normalization)
    genes = predicted.genes
    if common_genes:
        genes = genes[gene_columns(section, genes.tolist()) >= 0]
        if not len(genes):
            raise InputError(f"{predicted.path} and section {section.name} have no gene in common")
    counts = match_genes(section, genes.tolist())
    truth = np.asarray(normalize(unit, counts, SectionTotals.of(section, counts)), np.float64)
    columns = np.flatnonzero(np.isin(predicted.genes, genes))
    rows, truth_rows = _shared_spots(predicted, section)
    expression = predicted.expression[np.ix_(rows, columns)]
    present = np.asarray(~np.isnan(expression).all(axis=1))
    rows, truth_rows, expression = rows[present], truth_rows[present], expression[present]
    if not np.isfinite(expression).all():
        row, column = np.argwhere(~np.isfinite(expression))[0]
        raise InputError(
            f"{predicted.path}: spot {predicted.spot[rows[row]]} has {expression[row, column]} for "
            f"{genes[column]}; a map has finite values, or NaN in a whole row"
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
        truth=truth[truth_rows],
        xy_px=_positions(predicted, section, rows, truth_rows),
        normalization=unit,
        only_in_map=len(predicted.spot) - shared,
        only_in_truth=len(section) - shared,
        without_tile=int(np.count_nonzero(~present)),
        left_out_genes=len(predicted.genes) - len(genes),
        total=section.total[truth_rows],
        notes=tuple(counts_notes(section, genes.tolist())),
    )


def _positions(
    predicted: Prediction, section: Section, rows: NDArray[np.intp], truth_rows: NDArray[np.intp]
) -> NDArray[np.float64] | None:
    """Spot centers of the map, or of the section if the map has none."""
    if predicted.xy_px is not None:
        return predicted.xy_px[rows]
    if section.xy_px is None or not np.isfinite(section.xy_px[truth_rows]).all():
        return None
    return section.xy_px[truth_rows]


def _unit(predicted: Prediction, override: str | None) -> str:
    unit = override or predicted.normalization
    if unit is None or unit not in NORMALIZATIONS:
        reason = (
            "does not say how its expression is normalized" if unit is None else f"is normalized {unit!r}"
        )
        raise InputError(
            f"{predicted.path} {reason}; give --normalization, one of {', '.join(NORMALIZATIONS)}, for the "
            "truth"
        )
    return unit


def _shared_spots(predicted: Prediction, section: Section) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the map, in its order, whose spots the section has, and their rows in the section."""
    _, rows, truth_rows = np.intersect1d(predicted.spot, section.spot, return_indices=True)
    if not len(rows):
        raise InputError(
            f"{predicted.path} and section {section.name} have no spot in common ({predicted.spot[0]}, …; "
            f"{section.spot[0]}, …); give --section, or a map with the section's spot names"
        )
    order = np.argsort(rows)
    return rows[order], truth_rows[order]


def _first_line(error: BaseException) -> Any:
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_comparable(pairs: Sequence[Pair]) -> None:
    """Raise InputError if a method has a section twice, or maps differ in genes or normalization."""
    seen: set[tuple[str, str]] = set()
    for pair in pairs:
        if (pair.method, pair.section) in seen:
            raise InputError(
                f"two maps are of section {pair.section}; tell them apart as METHOD=MAP, or give --section "
                "for each"
            )
        seen.add((pair.method, pair.section))
        for name, own, first in (
            ("genes", set(pair.genes), set(pairs[0].genes)),
            ("normalization", pair.normalization, pairs[0].normalization),
        ):
            if own != first:
                raise InputError(
                    f"the maps of {pairs[0].section} and {pair.section} differ in {name}; evaluate them "
                    "separately"
                )


def measured_expression(
    map_: Map,
    truth: Path,
    section: str | None = None,
    normalization: str | None = None,
    bins: str | None = None,
) -> NDArray[np.float32]:
    """Measured expression in a map's order of spots and genes: float32 [n, G], NaN if not measured.

    truth, section, bins: see `choose_section`. normalization, and what is raised: see `pair_with_truth`.
    """
    predicted = Prediction(
        path=map_.path,
        spot=np.array(map_.spots),
        genes=np.array(map_.genes),
        expression=np.asarray(map_.expression[:], np.float64),
        xy_px=map_.xy_px,
        slide=(map_.title,),
        normalization=unit_of(map_.provenance.get("bundle", {})),
    )
    source = choose_section(predicted, truth, section, bins)
    pair = pair_with_truth(predicted, source, normalization=normalization, common_genes=True)
    row = {name: i for i, name in enumerate(map_.spots)}
    column = {gene: i for i, gene in enumerate(map_.genes)}
    measured = np.full((len(row), len(column)), np.nan, np.float32)
    measured[np.ix_([row[str(name)] for name in pair.spot], [column[gene] for gene in pair.genes])] = (
        pair.truth
    )
    return measured
