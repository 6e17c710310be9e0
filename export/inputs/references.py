"""The measured sections a bank is made of, cut to the genes of the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mclst.export.inputs.bank import ReferenceSection
from mclst.export.inputs.checkpoint import Checkpoint
from mclst.runtime.errors import CheckpointError, ReferenceDataError
from mclst.sections.formats.reference import (
    SectionSource,
    choose_sections,
    find_sections,
    match_genes,
    read_gene_list,
    read_section,
)
from mclst.sections.section import Section


def find_references(
    paths: Sequence[Path], sections: str | None, hold_out: Sequence[str]
) -> dict[str, SectionSource]:
    """Sections chosen from all `paths` together, sorted by name; nothing is read yet.

    Raises ReferenceDataError where two paths hold a section of one name; SectionError where a name is unknown.
    """
    found: dict[str, SectionSource] = {}
    for path in paths:
        for name, source in find_sections(path).items():
            if name in found:
                raise ReferenceDataError(
                    f"section {name} is in {path} and in another --reference; name it once"
                )
            found[name] = source
    return {name: found[name] for name in choose_sections(sorted(found), sections, hold_out=tuple(hold_out))}


@dataclass(frozen=True)
class Genes:
    """The model's gene names in its order, str [G], and where that order is from."""

    names: NDArray[np.str_]
    source: str


@dataclass(frozen=True)
class SectionImage:
    """A section whose image lies beside it: xy_px float64 [n, 2], level-0 px (x, y) of its spots, NaN where unknown.

    first_row: the bank's row of its first spot.
    """

    name: str
    image: Path
    xy_px: NDArray[np.float64]
    first_row: int


def model_genes(
    checkpoint: Checkpoint, paths: Sequence[Path], gene_list: Path | None, first: Section
) -> Genes:
    """The G gene names in the model's order, which no published checkpoint records.

    Taken from the checkpoint where it is one of mclst's own, else from `gene_list`, else from `genes.txt` in the
    reference folders, else from the first section where it holds exactly G genes. Raises ReferenceDataError where the
    number differs from the checkpoint's, or two lists contradict each other.
    """
    lists = [gene_list] if gene_list else [p / "genes.txt" for p in paths if (p / "genes.txt").is_file()]
    listed = (
        [listed_genes(checkpoint, path) for path in lists]
        if gene_list or "genes" not in checkpoint.carried
        else []
    )
    if "genes" in checkpoint.carried:
        listed.insert(0, Genes(_carried_genes(checkpoint), "the checkpoint"))
    for other in listed[1:]:
        if not np.array_equal(other.names, listed[0].names):
            raise ReferenceDataError(
                f"the genes of {other.source} differ from those of {listed[0].source}; give the list the model was "
                "trained on with --genes"
            )
    if listed:
        return listed[0]
    if len(first.genes) != checkpoint.genes:
        raise ReferenceDataError(
            f"section {first.name} has {len(first.genes)} genes and {checkpoint.path} was trained on "
            f"{checkpoint.genes}; give their list, in the model's order, with --genes"
        )
    return Genes(first.genes, f"section {first.name}, since nothing else tells the model's order")


def listed_genes(checkpoint: Checkpoint, gene_list: Path | None) -> Genes:
    """The G gene names of a file; ReferenceDataError where there is none or the checkpoint has another number."""
    if gene_list is None:
        raise ReferenceDataError(
            f"{checkpoint.path} does not hold the names of its {checkpoint.genes} genes; give them, in the model's "
            "order, with --genes"
        )
    genes = np.asarray(read_gene_list(gene_list), dtype=np.str_)
    if len(genes) != checkpoint.genes:
        raise ReferenceDataError(
            f"{gene_list} lists {len(genes)} genes and {checkpoint.path} was trained on {checkpoint.genes}; "
            "give the list it was trained on with --genes"
        )
    return Genes(genes, str(gene_list))


def read_references(
    sources: dict[str, SectionSource],
    genes_of: Callable[[Section], Genes],
    warn: Callable[[str], None],
) -> tuple[list[ReferenceSection], Genes, list[SectionImage]]:
    """Read each section and cut it to the model's genes, which `genes_of` tells from the first.

    Returns the cut sections, the genes, and where sections have an image and pixel coordinates (for parity); `warn` is
    told of values that are no counts. Raises SectionError as the readers do.
    """
    cut: list[ReferenceSection] = []
    pictured: list[SectionImage] = []
    genes: Genes | None = None
    for source in sources.values():
        section = read_section(source)
        genes = genes_of(section) if genes is None else genes
        counts = match_genes(section, list(genes.names))
        places = section.array_xy, section.xy_px
        cut.append(ReferenceSection(section.name, section.spot, counts, *places, section.total))
        if np.any(counts != np.rint(counts)):
            warn(
                f"section {section.name} ({section.path.name}, {section.counts_from}) holds values that are not whole "
                "counts; where they are normalised already, add --input-normalisation none --expression-normalisation none"
            )
        if section.image is not None and section.xy_px is not None:
            first_row = sum(len(before.spot) for before in cut[:-1])
            pictured.append(SectionImage(section.name, section.image, section.xy_px, first_row))
    assert genes is not None, "choose_sections refuses an empty choice"
    return cut, genes, pictured


def _carried_genes(checkpoint: Checkpoint) -> NDArray[np.str_]:
    genes = np.asarray([str(gene) for gene in checkpoint.carried["genes"]], dtype=np.str_)
    if len(genes) != checkpoint.genes or len(np.unique(genes)) != len(genes):
        raise CheckpointError(f"{checkpoint.path} carries genes that do not fit its weights; train it again")
    return genes


def carried_sections(checkpoint: Checkpoint) -> tuple[list[ReferenceSection], Genes]:
    """The sections and genes a checkpoint of `mclst.training` brings along.

    Raises CheckpointError where they contradict the weights or are no counts.
    """
    try:
        genes = _carried_genes(checkpoint)
        found = [_carried_section(section) for section in checkpoint.carried["sections"]]
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint.path} lacks its sections ({error!r}); train it again") from error
    for section in found:
        spots = len(section.spot)
        fits = section.counts.shape == (spots, checkpoint.genes) and all(
            of_spots is None or of_spots.shape == shape
            for of_spots, shape in (
                (section.array_xy, (spots, 2)),
                (section.xy_px, (spots, 2)),
                (section.total, (spots,)),
            )
        )
        if not fits or not np.isfinite(section.counts).all() or np.any(section.counts < 0):
            raise CheckpointError(
                f"{checkpoint.path} carries sections that do not fit its weights, such as {section.name}; train it again"
            )
    return found, Genes(genes, "the checkpoint")


def _carried_section(section: dict[str, Any]) -> ReferenceSection:
    of_spots = {
        name: None if section.get(name) is None else section[name].to(kind).numpy()
        for name, kind in (("array_xy", torch.int64), ("xy_px", torch.float64), ("total", torch.float64))
    }
    return ReferenceSection(
        name=str(section["name"]),
        spot=np.asarray([str(spot) for spot in section["spot"]], dtype=np.str_),
        counts=section["counts"].float().numpy(),
        **of_spots,
    )
