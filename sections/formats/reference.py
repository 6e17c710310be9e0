"""Measured sections on disk: which there are, which are wanted, and one of them read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py

from mclst.sections.errors import SectionError
from mclst.sections.formats import h5ad, legacy_st, spaceranger
from mclst.sections.formats.source import SectionSource
from mclst.sections.hdf5 import opened
from mclst.sections.section import Section
from mclst.sections.tables.genes import match_genes, read_gene_list

__all__ = [
    "SectionSource",
    "choose_sections",
    "find_sections",
    "match_genes",
    "read_gene_list",
    "read_section",
]

READERS = {"legacy-st": legacy_st.read, "space-ranger": spaceranger.read, "h5ad": h5ad.read}
ACCEPTED = (
    "counts/NAME.tsv[.gz] with spots/NAME_selection.tsv, a Space Ranger outs/ folder or a folder of them, "
    "a .h5ad or a folder of them"
)


def find_sections(path: Path | str) -> dict[str, SectionSource]:
    """Find the sections under a folder, or the one of a file; sorted by name, nothing large read.

    Raises SectionError where there is none, where one is there twice, or where a folder holds several formats.
    """
    path = Path(path)
    if not path.exists():
        raise SectionError(f"{path}: there is no such file or folder; give {ACCEPTED}")
    if path.is_file():
        source = _of_file(path)
        return {source.name: source}
    found = {
        "Space Ranger folders": spaceranger.find(path),
        "AnnData files": h5ad.find(path),
        "legacy ST tables": legacy_st.find(path),
    }
    held = {what: sources for what, sources in found.items() if sources}
    if not held:
        raise SectionError(f"{path}: no measured section in the folder; give {ACCEPTED}")
    if len(held) > 1:
        raise SectionError(f"{path}: the folder holds {' and '.join(held)}; keep one kind in a folder")
    (sources,) = held.values()
    return dict(sorted(sources.items()))


def choose_sections(
    names: Iterable[str], expression: str | None = None, hold_out: Iterable[str] = ()
) -> list[str]:
    """Choose sections by name: "A2-G3,H1" is all from A2 to G3 in sorted order, both included, and H1.

    names: the sections there are.  expression: None for all.  hold_out: names left out at the end.
    Gives the chosen names sorted, each once. A name that itself holds a hyphen is taken whole where it is there.
    Raises SectionError naming what there is where a name is unknown or nothing is left.
    """
    there = sorted(set(names))
    chosen = set(there) if expression is None else set()
    for piece in [] if expression is None else expression.split(","):
        chosen.update(_chosen(piece.strip(), there))
    for name in hold_out:
        if name not in there:
            raise SectionError(f"section {name!r}, to be held out, is not there; {_listed(there)}")
        chosen.discard(name)
    if not chosen:
        raise SectionError(f"no section is left to use; {_listed(there)}")
    return sorted(chosen)


def read_section(source: SectionSource) -> Section:
    """Read one section, rows in the order of its counts; SectionError, in one sentence, where its files are at fault."""
    return READERS[source.format](source)


def _of_file(path: Path) -> SectionSource:
    if h5py.is_hdf5(path):
        if _is_10x_matrix(path):
            raise SectionError(f"{path}: a Space Ranger matrix alone has no places; give its outs/ folder")
        return h5ad.source_of(path)
    source = legacy_st.source_of(path)
    if source is None:
        raise SectionError(f"{path}: the file is not a measured section; give {ACCEPTED}")
    return source


def _is_10x_matrix(path: Path) -> bool:
    with opened(path, "a measured section") as file:
        return "matrix" in file and "obs" not in file


def _chosen(piece: str, there: Sequence[str]) -> Sequence[str]:
    if piece in there:
        return [piece]
    cuts = [index for index, character in enumerate(piece) if character == "-"]
    ranges = [(piece[:cut].strip(), piece[cut + 1 :].strip()) for cut in cuts]
    known = [(first, last) for first, last in ranges if first in there and last in there]
    if len(known) > 1:
        raise SectionError(f"sections {piece!r} can be read as several ranges; name the sections one by one")
    if not known:
        unknown = next((name for pair in ranges for name in pair if name not in there), piece)
        raise SectionError(
            f"section {unknown if len(ranges) == 1 else piece!r} is not there; {_listed(there)}"
        )
    first, last = known[0]
    if first > last:
        raise SectionError(f"sections {piece!r}: {first} comes after {last}; write {last}-{first}")
    return there[there.index(first) : there.index(last) + 1]


def _listed(there: Sequence[str]) -> str:
    shown = list(there) if len(there) <= 12 else [*there[:8], "…", *there[-2:]]
    return f"there are {', '.join(shown)}" if there else "there are none"
