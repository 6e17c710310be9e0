"""Measured sections of a bank, cut to the genes of the checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mclst.export.inputs.bank import ReferenceSection
from mclst.export.inputs.checkpoint import Checkpoint
from mclst.runtime.errors import CheckpointError, ReferenceDataError
from mclst.runtime.section_options import SectionFiles
from mclst.sections.formats.reference import (
    SectionSource,
    choose_sections,
    find_sections,
    match_genes,
    read_gene_list,
    read_section,
)
from mclst.sections.location import SlideLocation
from mclst.sections.normalize import SectionTotals
from mclst.sections.section import Section
from mclst.sections.tables.genes import counts_notes


def find_references(
    paths: Sequence[Path],
    sections: str | None,
    hold_out: Sequence[str],
    files: SectionFiles | None = None,
) -> dict[str, SectionSource]:
    """Choose sections from all `paths` together, sorted by name, without reading them.

    files: their slides and gene names. Raises ReferenceDataError if two paths have a section of one name,
    SectionError for an unknown name.
    """
    files = files or SectionFiles()
    sources: dict[str, SectionSource] = {}
    for path in paths:
        for name, source in find_sections(path, files.bins).items():
            if name in sources:
                raise ReferenceDataError(
                    f"section {name} is in {path} and in another --reference; name it once"
                )
            sources[name] = source
    sources = files.give(sources, paths)
    names = choose_sections(sorted(sources), sections, hold_out=tuple(hold_out))
    return {name: sources[name] for name in names}


@dataclass(frozen=True)
class GeneList:
    """Gene names in the model's order, str [G], and the source of that order."""

    names: NDArray[np.str_]
    source: str


@dataclass(frozen=True)
class SectionImage:
    """Image of a section.

    Parameters
    ----------
    name : str
    image : Path or RemoteLocation
    xy_px : float64 [n, 2]
        Level-0 px (x, y) of the spots, NaN if unknown.
    first_row : int
        Bank row of the first spot.
    spot : ndarray of str, shape (n,)
        Names, for messages.
    """

    name: str
    image: SlideLocation
    xy_px: NDArray[np.float64]
    first_row: int
    spot: NDArray[np.str_]

    def describe(self, row: int) -> str:
        """Name a spot for a message."""
        return f"section {self.name}: spot {self.spot[row]}"


def model_genes(
    checkpoint: Checkpoint, paths: Sequence[Path], gene_list: Path | None, first: Section
) -> GeneList:
    """Find the model's gene order, which published checkpoints do not store.

    Sources in order: a checkpoint of mclst, `gene_list`, `genes.txt` in the reference folders, the first
    section if it has exactly G genes. Raises ReferenceDataError if a list has another length or two lists
    contradict.
    """
    files = [gene_list] if gene_list else [p / "genes.txt" for p in paths if os.path.isfile(p / "genes.txt")]
    gene_lists = (
        [read_genes(checkpoint, path) for path in files]
        if gene_list or "genes" not in checkpoint.metadata
        else []
    )
    if "genes" in checkpoint.metadata:
        gene_lists.insert(0, GeneList(_stored_genes(checkpoint), "the checkpoint"))
    for other in gene_lists[1:]:
        if not np.array_equal(other.names, gene_lists[0].names):
            raise ReferenceDataError(
                f"the genes of {other.source} differ from those of {gene_lists[0].source}; give the list "
                "the model was trained on with --genes"
            )
    if gene_lists:
        return gene_lists[0]
    if len(first.genes) != checkpoint.genes:
        raise ReferenceDataError(
            f"section {first.name} has {len(first.genes)} genes and {checkpoint.path} was trained on "
            f"{checkpoint.genes}; give their list, in the model's order, with --genes"
        )
    return GeneList(first.genes, f"section {first.name}, since nothing else tells the model's order")


def read_genes(checkpoint: Checkpoint, gene_list: Path | None) -> GeneList:
    """Read G gene names; ReferenceDataError without a file or if the checkpoint has another number."""
    if gene_list is None:
        raise ReferenceDataError(
            f"{checkpoint.path} does not hold the names of its {checkpoint.genes} genes; give them, in the "
            "model's order, with --genes"
        )
    genes = np.asarray(read_gene_list(gene_list), dtype=np.str_)
    if len(genes) != checkpoint.genes:
        raise ReferenceDataError(
            f"{gene_list} lists {len(genes)} genes and {checkpoint.path} was trained on {checkpoint.genes}; "
            "give the list it was trained on with --genes"
        )
    return GeneList(genes, str(gene_list))


def known_genes(checkpoint: Checkpoint, gene_list: Path | None) -> GeneList:
    """Genes of a checkpoint without reference sections: its own, or those of `gene_list`.

    Raises ReferenceDataError if there are none, or the two contradict.
    """
    if "genes" not in checkpoint.metadata:
        return read_genes(checkpoint, gene_list)
    stored = GeneList(_stored_genes(checkpoint), "the checkpoint")
    if gene_list is not None and not np.array_equal(read_genes(checkpoint, gene_list).names, stored.names):
        raise ReferenceDataError(
            f"the genes of {gene_list} differ from those that {checkpoint.path} was fitted on; leave --genes "
            "out"
        )
    return stored


def read_references(
    sources: dict[str, SectionSource],
    genes_of: Callable[[Section], GeneList],
    warn: Callable[[str], None],
) -> tuple[list[ReferenceSection], GeneList, list[SectionImage]]:
    """Read sections and cut them to the model's genes.

    Parameters
    ----------
    sources : dict of str to SectionSource
    genes_of : callable
        First section → the model's genes.
    warn : callable
        Called with each of `counts_notes`.

    Returns
    -------
    sections : list of ReferenceSection
    genes : GeneList
    images : list of SectionImage
        Of sections with an image and pixel coordinates.

    Raises
    ------
    SectionError
        If a section cannot be read.
    """
    sections: list[ReferenceSection] = []
    images: list[SectionImage] = []
    genes: GeneList | None = None
    for source in sources.values():
        section = read_section(source)
        genes = genes_of(section) if genes is None else genes
        counts = match_genes(section, list(genes.names))
        for note in counts_notes(section, genes.names.tolist()):
            warn(note)
        sections.append(
            ReferenceSection(
                section.name,
                section.spot,
                counts,
                section.array_xy,
                section.xy_px,
                SectionTotals.of(section, counts),
            )
        )
        if section.image is not None and section.xy_px is not None:
            first_row = sum(len(before.spot) for before in sections[:-1])
            images.append(SectionImage(section.name, section.image, section.xy_px, first_row, section.spot))
    assert genes is not None, "choose_sections refuses an empty choice"
    return sections, genes, images


def _stored_genes(checkpoint: Checkpoint) -> NDArray[np.str_]:
    genes = np.asarray([str(gene) for gene in checkpoint.metadata["genes"]], dtype=np.str_)
    if len(genes) != checkpoint.genes or len(np.unique(genes)) != len(genes):
        raise CheckpointError(f"{checkpoint.path} stores genes that do not fit its weights; train it again")
    return genes


def stored_sections(checkpoint: Checkpoint) -> tuple[list[ReferenceSection], GeneList]:
    """Sections and genes stored in a checkpoint of `mclst.training`.

    Raises CheckpointError if they contradict the weights or are no counts.
    """
    try:
        genes = _stored_genes(checkpoint)
        sections = [_stored_section(section) for section in checkpoint.metadata["sections"]]
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint.path} lacks its sections ({error!r}); train it again") from error
    for section in sections:
        spots = len(section.spot)
        fits = section.counts.shape == (spots, checkpoint.genes) and all(
            values is None or values.shape == shape
            for values, shape in (
                (section.array_xy, (spots, 2)),
                (section.xy_px, (spots, 2)),
            )
        )
        totals = section.totals
        if totals is not None:
            fits &= totals.spot.shape == (spots,) and totals.gene.shape == (checkpoint.genes,)
            fits &= totals.measured_genes is None or totals.measured_genes >= checkpoint.genes
        if not fits or not np.isfinite(section.counts).all() or np.any(section.counts < 0):
            raise CheckpointError(
                f"{checkpoint.path} stores sections that do not fit its weights, such as {section.name}; "
                "train it again"
            )
    return sections, GeneList(genes, "the checkpoint")


def _stored_section(section: dict[str, Any]) -> ReferenceSection:
    optional = {
        name: None if section.get(name) is None else section[name].to(dtype).numpy()
        for name, dtype in (("array_xy", torch.int64), ("xy_px", torch.float64))
    }
    counts = section["counts"].float().numpy()
    return ReferenceSection(
        name=str(section["name"]),
        spot=np.asarray([str(spot) for spot in section["spot"]], dtype=np.str_),
        counts=counts,
        totals=_stored_totals(section, counts),
        **optional,
    )


def _stored_totals(section: dict[str, Any], counts: NDArray[np.float32]) -> SectionTotals | None:
    """Totals that a checkpoint stores; an earlier one was trained on those of its own spots."""
    if section.get("total") is None:
        return None
    measured = section.get("measured_genes")
    spot = section["total"].double().numpy()
    totals = SectionTotals.of_counts(counts, spot, None if measured is None else int(measured))
    if "gene_total" not in section:
        return totals
    gene, median = section["gene_total"].double().numpy(), float(section["median_total"])
    return replace(totals, gene=gene, median=median)
