"""Find, choose and read measured sections on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import h5py

from mclst.sections.errors import SectionError
from mclst.sections.formats import h5ad, legacy_st, spaceranger, spatialdata_store, xenium
from mclst.sections.formats.hest_patches import patches_of, section_on_patches
from mclst.sections.formats.source import SectionSource
from mclst.sections.hdf5 import open_hdf5
from mclst.sections.section import Section
from mclst.sections.tables.genes import match_genes, read_gene_list
from mclst.sections.tables.synonyms import read_aliases, synonyms_of

__all__ = [
    "SectionSource",
    "choose_sections",
    "find_sections",
    "match_genes",
    "read_gene_list",
    "read_section",
]

READERS = {
    "legacy-st": legacy_st.read,
    "space-ranger": spaceranger.read,
    "h5ad": h5ad.read,
    "xenium": xenium.read,
    "spatialdata": spatialdata_store.read,
}
ACCEPTED = (
    "counts/NAME.tsv[.gz] with spots/NAME_selection.tsv, a Space Ranger outs/ folder, a Xenium bundle, a "
    "SpatialData .zarr, an .h5ad, a folder of them, or a HEST folder with st/"
)


def find_sections(path: Path | str, bins: str | None = None) -> dict[str, SectionSource]:
    """Find the sections of a folder or file without reading their counts.

    Parameters
    ----------
    path : Path or str
        A folder of sections of one format, or a single section.
    bins : str, optional
        Of Visium HD: µm of a bin, pooled from smaller ones if need be, or "cells"; default 8. Of Xenium:
        "cells", the default, or PITCH or PITCH/DIAMETER in µm of pseudo-spots.

    Returns
    -------
    dict of str to SectionSource
        Sorted by name.

    Raises
    ------
    SectionError
        If there is no section, a section is there twice, or the folder mixes formats.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise SectionError(f"{path}: there is no such file or folder; give {ACCEPTED}")
    if os.path.isfile(path):
        source = _of_file(path)
        return {source.name: source}
    sections = {
        "Space Ranger folders": spaceranger.find(path, bins),
        "Xenium bundles": xenium.find(path, bins),
        "SpatialData stores": spatialdata_store.find(path, bins),
        "AnnData files": h5ad.find(path),
        "legacy ST tables": legacy_st.find(path),
    }
    by_format = {name: sources for name, sources in sections.items() if sources}
    if not by_format and spaceranger.lacks_matrix(path):
        raise SectionError(
            f"{path}: there are positions of spots and no counts; copy filtered_feature_bc_matrix.h5, or the "
            "folder of that name, from Space Ranger's outs/"
        )
    if not by_format:
        raise SectionError(f"{path}: no measured section in the folder; give {ACCEPTED}")
    if len(by_format) > 1:
        raise SectionError(f"{path}: the folder holds {' and '.join(by_format)}; keep one format in a folder")
    (sources,) = by_format.values()
    return dict(sorted(sources.items()))


def choose_sections(
    names: Iterable[str], expression: str | None = None, hold_out: Iterable[str] = ()
) -> list[str]:
    """Choose sections by names and ranges.

    Parameters
    ----------
    names : iterable of str
        Available sections.
    expression : str, optional
        Such as "A2-G3,H1": all from A2 to G3 in sorted order, both included, and H1. None chooses all. A name
        that contains a hyphen is matched as a name first.
    hold_out : iterable of str
        Names to remove from the choice.

    Returns
    -------
    list of str
        Chosen names, sorted and unique.

    Raises
    ------
    SectionError
        If a name is unknown or no section is left; the message lists the available ones.
    """
    available = sorted(set(names))
    chosen = set(available) if expression is None else set()
    for term in [] if expression is None else expression.split(","):
        chosen.update(_match_term(term.strip(), available))
    for name in hold_out:
        if name not in available:
            raise SectionError(f"section {name!r}, to be held out, does not exist; {_listing(available)}")
        chosen.discard(name)
    if not chosen:
        raise SectionError(f"no section is left to use; {_listing(available)}")
    return sorted(chosen)


def read_section(source: SectionSource) -> Section:
    """Read one section, rows in the order of its counts.

    Parameters
    ----------
    source : SectionSource
        One of the values of `find_sections`.

    Returns
    -------
    Section

    Raises
    ------
    SectionError
        If a file is damaged, a spot appears twice, or counts and spots do not belong together.
    """
    section = READERS[source.format](source)
    if (patches := patches_of(source.image)) is not None:
        section = section_on_patches(section, patches)
    synonyms = dict(section.synonyms)
    if source.aliases is not None:
        synonyms = synonyms_of(section.genes.tolist(), groups=read_aliases(source.aliases)) | synonyms
    scale, xy_px, mpp = source.image_scale, section.xy_px, section.mpp
    return replace(
        section,
        xy_px=None if xy_px is None else xy_px * scale,
        mpp=None if mpp is None else mpp / scale,
        image_scale=section.image_scale * scale,
        format=source.format,
        synonyms=synonyms,
    )


def _of_file(path: Path) -> SectionSource:
    if h5py.is_hdf5(path):
        if _is_10x_matrix(path):
            raise SectionError(
                f"{path}: a Space Ranger matrix alone has no coordinates; give its outs/ folder"
            )
        return h5ad.source_of(path)
    source = legacy_st.source_of(path)
    if source is None:
        raise SectionError(f"{path}: the file is not a measured section; give {ACCEPTED}")
    return source


def _is_10x_matrix(path: Path) -> bool:
    with open_hdf5(path, "a measured section") as file:
        return "matrix" in file and "obs" not in file


def _match_term(term: str, available: Sequence[str]) -> Sequence[str]:
    if term in available:
        return [term]
    hyphens = [index for index, character in enumerate(term) if character == "-"]
    ranges = [(term[:at].strip(), term[at + 1 :].strip()) for at in hyphens]
    known = [(first, last) for first, last in ranges if first in available and last in available]
    if len(known) > 1:
        raise SectionError(f"sections {term!r} can be read as several ranges; name the sections one by one")
    if not known:
        unknown = next((name for pair in ranges for name in pair if name not in available), term)
        raise SectionError(
            f"section {unknown if len(ranges) == 1 else term!r} does not exist; {_listing(available)}"
        )
    first, last = known[0]
    if first > last:
        raise SectionError(f"sections {term!r}: {first} comes after {last}; write {last}-{first}")
    return available[available.index(first) : available.index(last) + 1]


def _listing(available: Sequence[str]) -> str:
    shown = list(available) if len(available) <= 12 else [*available[:8], "…", *available[-2:]]
    return f"there are {', '.join(shown)}" if available else "there are none"
