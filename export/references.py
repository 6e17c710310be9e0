"""The measured sections a bank is made of, cut to the genes of the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mclst.export.bank import ReferenceSection
from mclst.export.checkpoint import Checkpoint
from mclst.runtime.errors import CheckpointError, ReferenceDataError
from mclst.sections.reference import (
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


def model_genes(
    checkpoint: Checkpoint, paths: Sequence[Path], gene_list: Path | None, first: Section
) -> NDArray[np.str_]:
    """The G gene names in the model's order, which no published checkpoint records.

    Taken from `gene_list`, else from a `genes.txt` in a reference folder, else from the sections themselves where they
    hold exactly G genes. Raises ReferenceDataError where the number differs from the checkpoint's.
    """
    if gene_list is None:
        gene_list = next((p / "genes.txt" for p in paths if (p / "genes.txt").is_file()), None)
    if gene_list is not None:
        return listed_genes(checkpoint, gene_list)
    if len(first.genes) != checkpoint.genes:
        raise ReferenceDataError(
            f"section {first.name} has {len(first.genes)} genes and {checkpoint.path} was trained on "
            f"{checkpoint.genes}; give their list, in the model's order, with --genes"
        )
    return first.genes


def listed_genes(checkpoint: Checkpoint, gene_list: Path | None) -> NDArray[np.str_]:
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
    return genes


def read_references(
    sources: dict[str, SectionSource],
    genes_of: Callable[[Section], NDArray[np.str_]],
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[list[ReferenceSection], NDArray[np.str_], list[Section]]:
    """Read each section and cut it to the model's genes, which `genes_of` tells from the first.

    Returns the cut sections, the genes, and the sections that have an image and pixel coordinates (for parity), their
    counts left out of memory as soon as they are cut. Raises SectionError as the readers do.
    """
    cut: list[ReferenceSection] = []
    pictured: list[Section] = []
    genes: NDArray[np.str_] | None = None
    for source in sources.values():
        section = read_section(source)
        genes = genes_of(section) if genes is None else genes
        counts = match_genes(section, list(genes))
        total = np.asarray(section.counts.sum(axis=1, dtype=np.float64)).ravel()
        cut.append(
            ReferenceSection(section.name, section.spot, counts, section.array_xy, section.xy_px, total)
        )
        if section.image is not None and section.xy_px is not None:
            pictured.append(section)
        advance(1)
    assert genes is not None, "choose_sections refuses an empty choice"
    return cut, genes, pictured


def carried_sections(checkpoint: Checkpoint) -> tuple[list[ReferenceSection], NDArray[np.str_]]:
    """The sections and genes a checkpoint of `mclst.training` brings along.

    Raises CheckpointError where they contradict the weights.
    """
    try:
        genes = np.asarray(checkpoint.carried["genes"], dtype=np.str_)
        found = [
            ReferenceSection(
                name=str(section["name"]),
                spot=np.asarray(section["spot"], dtype=np.str_),
                counts=section["counts"].float().numpy(),
                array_xy=None if section.get("array_xy") is None else section["array_xy"].long().numpy(),
                xy_px=None if section.get("xy_px") is None else section["xy_px"].double().numpy(),
            )
            for section in checkpoint.carried["sections"]
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.path} lacks its sections ({error!r}); train it again") from error
    sizes = {section.counts.shape[1] for section in found} | {len(genes)}
    if sizes != {checkpoint.genes} or any(len(s.spot) != len(s.counts) for s in found):
        raise CheckpointError(
            f"{checkpoint.path} carries sections that do not fit its weights; train it again"
        )
    return found, genes
