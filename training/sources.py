"""The sections a run is told to train on and to be judged on, read from disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mclst.runtime.bundle.manifest import Tile
from mclst.runtime.errors import ReferenceDataError
from mclst.sections.formats.reference import (
    SectionSource,
    choose_sections,
    find_sections,
    read_gene_list,
    read_section,
)
from mclst.sections.section import Section
from mclst.training.data import TrainingSection, read_training_section


def find_all(paths: Sequence[Path]) -> dict[str, SectionSource]:
    """Every section under `paths`, by name; ReferenceDataError where a name is in two of them."""
    found: dict[str, SectionSource] = {}
    for path in paths:
        for name, source in find_sections(path).items():
            if name in found:
                raise ReferenceDataError(f"section {name} is in {path} and in another folder; name it once")
            found[name] = source
    return found


def part(
    found: dict[str, SectionSource], chosen: str | None, hold_out: Sequence[str], validation: Sequence[str]
) -> tuple[list[SectionSource], list[SectionSource]]:
    """The sections to train on and those to validate on, each sorted by name; none is in both.

    Raises SectionError where a name is unknown or no section is left to train on.
    """
    names = choose_sections(found, chosen, hold_out=[*hold_out, *validation])
    held = choose_sections(found, ",".join(validation)) if validation else []
    return [found[name] for name in names], [found[name] for name in held]


def read_genes(paths: Sequence[Path], gene_list: Path | None, first: Section) -> list[str]:
    """The model's genes: of `gene_list`, else of a genes.txt in one of `paths`, else all of `first`."""
    if gene_list is None:
        gene_list = next((path / "genes.txt" for path in paths if (path / "genes.txt").is_file()), None)
    return first.genes.tolist() if gene_list is None else read_gene_list(gene_list)


def read_all(
    sources: Sequence[SectionSource],
    genes_of: Callable[[Section], Sequence[str]],
    tile: Tile,
    *,
    workers: int,
    slide_mpp: float | None,
    placed_on_array: bool,
    advance: Callable[[int], None] = lambda n: None,
) -> list[TrainingSection]:
    """Read sections with their tiles, all in the gene order of the first; `advance` hears of every section.

    Raises what `read_training_section` raises.
    """
    genes: Sequence[str] | None = None
    found = []
    for source in sources:
        section = read_section(source)
        genes = genes_of(section) if genes is None else genes
        found.append(
            read_training_section(
                section,
                genes,
                tile,
                workers=workers,
                slide_mpp=slide_mpp,
                placed_on_array=placed_on_array,
            )
        )
        advance(1)
    return found
