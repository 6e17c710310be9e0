"""Find, split and read the sections of a training run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from mclst.runtime.bundle.manifest import Tile
from mclst.runtime.errors import ReferenceDataError
from mclst.runtime.section_options import SectionFiles
from mclst.sections.formats.images import missing_image
from mclst.sections.formats.reference import (
    SectionSource,
    choose_sections,
    find_sections,
    read_gene_list,
    read_section,
)
from mclst.sections.section import Section
from mclst.sections.tables.genes import list_genes
from mclst.training.data import TrainingSection, read_training_section


def find_all_sections(paths: Sequence[Path], files: SectionFiles | None = None) -> dict[str, SectionSource]:
    """Find all sections under `paths`, by name, and give them the slides and gene names of `files`.

    Raises ReferenceDataError if a name appears in two paths, SectionError if `files` do not fit.
    """
    files = files or SectionFiles()
    sections: dict[str, SectionSource] = {}
    for path in paths:
        for name, source in find_sections(path, files.bins).items():
            if name in sections:
                raise ReferenceDataError(f"section {name} is in {path} and in another folder; give it once")
            sections[name] = source
    return files.give(sections, paths)


def split_sections(
    sections: dict[str, SectionSource],
    expression: str | None,
    hold_out: Sequence[str],
    validation: Sequence[str],
) -> tuple[list[SectionSource], list[SectionSource]]:
    """Split sections into those to train on and those to validate on, each sorted by name.

    Raises SectionError if a name is unknown or no section is left to train on.
    """
    names = choose_sections(sections, expression, hold_out=[*hold_out, *validation])
    held_out = choose_sections(sections, ",".join(validation)) if validation else []
    return [sections[name] for name in names], [sections[name] for name in held_out]


def read_genes(
    paths: Sequence[Path], gene_list: Path | None, first: Section, say: Callable[[str], None]
) -> list[str]:
    """Genes of the model: from `gene_list`, else a genes.txt in one of `paths`, else those of `first`.

    Symbols that two genes of `first` share are left out, and said. Raises SectionError if the list cannot be
    read, ReferenceDataError if no gene is left.
    """
    if gene_list is None:
        gene_list = next((path / "genes.txt" for path in paths if (path / "genes.txt").is_file()), None)
    if gene_list is not None:
        return read_gene_list(gene_list)
    times = Counter(first.genes.tolist())
    repeated = [gene for gene, count in times.items() if count > 1]
    if repeated and len(repeated) == len(times):
        raise ReferenceDataError(
            f"every gene of section {first.name} ({first.path}) appears in it more than once; name the "
            "model's by their Ensembl ids with --genes"
        )
    if repeated:
        say(
            f"Note: gene names that section {first.name} has more than once are left out: "
            f"{list_genes(repeated)}; name these genes by their Ensembl ids with --genes"
        )
    return [gene for gene in times if times[gene] == 1]


def read_training_sections(
    sources: Sequence[SectionSource],
    genes_of: Callable[[Section], Sequence[str]],
    tile: Tile,
    *,
    workers: int,
    slide_mpp: float | None,
    needs_array: bool,
    advance: Callable[[int], None] = lambda n: None,
) -> list[TrainingSection]:
    """Read sections with their tiles; raises as `read_training_section` does.

    genes_of: returns the model's genes for the first section; all sections use them.
    advance: called after each section.
    """
    genes: Sequence[str] | None = None
    sections = []
    for source in sources:
        if source.image is None:
            raise ReferenceDataError(missing_image(source))
        section = read_section(source)
        genes = genes_of(section) if genes is None else genes
        sections.append(
            read_training_section(
                section,
                genes,
                tile,
                workers=workers,
                slide_mpp=slide_mpp,
                needs_array=needs_array,
            )
        )
        advance(1)
    return sections
