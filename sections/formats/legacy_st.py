"""Reader of legacy Spatial Transcriptomics sections: a table of counts, a table of spots, an image.

Layout: `counts/C4.tsv.gz`, `spots/C4_selection.tsv`, `images/C4.jpg`; the published `ST-cnts`,
`ST-spotfiles`, `ST-imgs/C/C4/…`; or all files in one folder.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mclst.sections.counts import counts_csr, require_unique_spots
from mclst.sections.errors import SectionError
from mclst.sections.formats.images import find_image
from mclst.sections.formats.source import SectionSource, is_image, list_folder
from mclst.sections.section import Section
from mclst.sections.tables.cells import NUMBER
from mclst.sections.tables.spots import read_spots
from mclst.sections.tables.synonyms import synonyms_of
from mclst.sections.tables.text_file import read_text

COUNT_FOLDERS = ("counts", "ST-cnts")
SPOT_FOLDERS = ("spots", "ST-spotfiles")
IMAGE_FOLDERS = ("images", "ST-imgs")
COUNTS_FILE = re.compile(r"(?P<name>.+?)(_stdata)?\.tsv(\.gz)?")
ARRAY_NAME = re.compile(r"(\d{1,9})x(\d{1,9})", re.ASCII)
FRACTIONAL_NAME = re.compile(r"[\d.]+x[\d.]+", re.ASCII)
ROWS_AT_ONCE = 512


def find(folder: Path) -> dict[str, SectionSource]:
    """Find the sections of a folder.

    With a counts folder, every table in it is a section; without one, every table that has a selection table.
    Raises SectionError if a section has two counts tables.
    """
    absolute = folder.absolute()  # so that "." has a name
    root = absolute.parent if absolute.name in COUNT_FOLDERS else folder
    sections: dict[str, SectionSource] = {}
    counts = [root / name for name in COUNT_FOLDERS if (root / name).is_dir()]
    if len(counts) > 1:
        raise SectionError(f"{counts[0]} and {counts[1]} both hold counts; keep one")
    for file in list_folder(counts[0] if counts else root):
        name = _section_name(file)
        if name is None:
            continue
        source = _source(name, file, root)
        if not counts and source.spots is None:
            continue
        if name in sections:
            raise SectionError(
                f"{sections[name].path} and {file} both are counts of section {name}; keep one"
            )
        sections[name] = source
    return sections


def source_of(path: Path) -> SectionSource | None:
    """Describe a counts table as a section; None if its name does not match."""
    name = _section_name(path)
    if name is None:
        return None
    folder = path.absolute().parent
    return _source(name, path, folder.parent if folder.name in COUNT_FOLDERS else folder)


def read(source: SectionSource) -> Section:
    """Read a section: rows in the order of the counts, pixel coordinates joined by array coordinates.

    Raises SectionError if a table is damaged or no row has pixel coordinates.
    """
    genes, spot, counts = _read_counts(source.path)
    array_xy = _array_xy(source.path, spot)
    xy_px = None if source.spots is None else _spot_centers(source.spots, source.path, array_xy)
    return Section(
        source.name,
        source.path,
        genes,
        spot,
        counts,
        array_xy,
        xy_px,
        source.image,
        synonyms=synonyms_of(genes.tolist()),
    )


def _section_name(path: Path) -> str | None:
    match = COUNTS_FILE.fullmatch(path.name)
    if match is None or not path.is_file() or "selection" in path.name:
        return None
    return match["name"]


def _source(name: str, counts: Path, root: Path) -> SectionSource:
    tables = (f"{name}_selection.tsv", f"spot_data-selection-{name}.tsv")
    candidates = [root / folder / table for folder in (*SPOT_FOLDERS, ".") for table in tables]
    spots = [path for path in candidates if path.is_file()]
    if len(spots) > 1:
        raise SectionError(f"{spots[0]} and {spots[1]} both are spots of section {name}; keep one")
    return SectionSource(name, "legacy-st", counts, spots[0] if spots else None, _image(name, root))


def _image(name: str, root: Path) -> Path | None:
    image = find_image(name, [root, *(root / folder for folder in IMAGE_FOLDERS)])
    published = root / "ST-imgs" / name[0] / name
    if image is not None or not published.is_dir():
        return image
    pictures = [entry for entry in list_folder(published) if is_image(entry)]
    if len(pictures) > 1:
        raise SectionError(f"{pictures[0]} and {pictures[1]} both are images of section {name}; keep one")
    return pictures[0] if pictures else None


def _read_counts(path: Path) -> tuple[NDArray[np.str_], NDArray[np.str_], sp.csr_matrix]:
    """Read spots x genes: a header of gene names, then a name and a number per gene in each row, by tabs."""
    text = read_text(path, may_be_gzip=True)
    lines = [
        (number, line.rstrip("\r\n")) for number, line in enumerate(io.StringIO(text, newline=None), start=1)
    ]
    lines = [(number, line) for number, line in lines if line.strip()]
    genes = _genes(path, lines)
    spot: list[str] = []
    blocks: list[sp.csr_matrix] = []
    for start in range(1, len(lines), ROWS_AT_ONCE):
        rows = [(number, *line.partition("\t")[::2]) for number, line in lines[start : start + ROWS_AT_ONCE]]
        spot += [name.strip().strip('"') for _, name, _ in rows]
        blocks.append(sp.csr_matrix(_values(path, genes, rows)))
    names = np.array(spot, dtype=np.str_)
    require_unique_spots(names, path)
    return genes, names, counts_csr(sp.vstack(blocks, format="csr"), path, names, genes)


def _genes(path: Path, lines: list[tuple[int, str]]) -> NDArray[np.str_]:
    header = [cell.strip().strip('"') for cell in lines[0][1].split("\t")]
    if len(lines) < 2:
        raise SectionError(f"{path}: the counts have a header and no rows")
    width = lines[1][1].count("\t") + 1
    if len(header) == width:
        header = header[1:]  # the corner cell; R leaves it out
    if len(header) != width - 1 or not header:
        raise SectionError(
            f"{path}: line {lines[1][0]} has {width} cells under a header of {len(header)}; "
            "give a tab-separated table with a spot's name and one count per gene in each line"
        )
    if ARRAY_NAME.fullmatch(header[0]) and not ARRAY_NAME.match(lines[1][1]):
        raise SectionError(f"{path}: the columns are spots and the rows genes; transpose the table")
    genes = np.array(header, dtype=np.str_)
    names, occurrences = np.unique(genes, return_counts=True)
    if (occurrences > 1).any() or "" in names:
        repeated = "" if "" in names else names[np.argmax(occurrences > 1)]
        raise SectionError(
            f"{path}: line {lines[0][0]}: gene {str(repeated)!r} appears more than once, or is blank"
        )
    return genes


def _values(path: Path, genes: NDArray[np.str_], rows: list[tuple[int, str, str]]) -> NDArray[np.float64]:
    for number, _, cells in rows:
        if cells.count("\t") + 1 != len(genes):
            raise SectionError(
                f"{path}: line {number} has {cells.count(chr(9)) + 1} counts for {len(genes)} genes; "
                "the line is damaged"
            )
    try:
        values = np.loadtxt([cells for _, _, cells in rows], delimiter="\t", comments=None, ndmin=2)
    except ValueError:
        values = np.empty((0, 0))
    if values.shape == (len(rows), len(genes)):
        return values
    raise _not_a_number(path, genes, rows)


def _not_a_number(path: Path, genes: NDArray[np.str_], rows: list[tuple[int, str, str]]) -> SectionError:
    for number, _, cells in rows:
        for gene, cell in zip(genes.tolist(), cells.split("\t"), strict=True):
            if not NUMBER.fullmatch(cell):
                return SectionError(
                    f"{path}: line {number}: the count of {gene} is {cell.strip()[:40]!r}; give a number"
                )
    return SectionError(f"{path}: lines {rows[0][0]} to {rows[-1][0]} cannot be read as numbers")


def _array_xy(path: Path, spot: NDArray[np.str_]) -> NDArray[np.int64]:
    array_xy = np.empty((len(spot), 2), dtype=np.int64)
    for row, name in enumerate(spot.tolist()):
        match = ARRAY_NAME.fullmatch(name)
        if match is None:
            fix = (
                "round it to whole array coordinates"
                if FRACTIONAL_NAME.fullmatch(name)
                else "name it XxY, as 10x13"
            )
            raise SectionError(f"{path}: row {row + 1} of the counts is named {name!r}; {fix}")
        array_xy[row] = int(match[1]), int(match[2])
    return array_xy


def _spot_centers(spots_path: Path, counts_path: Path, array_xy: NDArray[np.int64]) -> NDArray[np.float64]:
    spots = read_spots(spots_path, all_spots=True)
    if spots.array_xy is None:
        raise SectionError(
            f"{spots_path}: {spots.variant} has no array coordinates x, y to join with {counts_path.name}"
        )
    row_of: dict[tuple[int, int], int] = {}
    for index, (x, y) in enumerate(spots.array_xy.tolist()):
        if (x, y) in row_of:
            raise SectionError(
                f"{spots_path}: line {spots.row[index]}: array coordinates {x}, {y} appear twice"
            )
        row_of[x, y] = index
    rows = np.array([row_of.get((x, y), -1) for x, y in array_xy.tolist()], dtype=np.int64)
    if (rows < 0).all():
        raise SectionError(
            f"{counts_path}: no row has its coordinates in {spots_path}; the files do not belong together"
        )
    # Sections published with their off-tissue rows have spots without pixel coordinates.
    return np.where(rows[:, None] >= 0, spots.xy_px[rows], np.nan)
