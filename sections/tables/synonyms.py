"""Other names of a section's genes: Ensembl ids without their version, symbols, older names of symbols."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mclst.sections.errors import SectionError
from mclst.sections.tables.delimited import detect_delimiter
from mclst.sections.tables.text_file import MAX_LIST_BYTES, read_text

ENSEMBL = re.compile(r"(ENS[A-Z]{0,6}G\d{11})(\.\d+)?(_PAR_Y)?", re.ASCII)
"""A gene's stable id (Ensembl, "Stable IDs"); GENCODE appends a version, and _PAR_Y to the copy on Y."""
APPROVED = ("symbol", "approved symbol", "approved_symbol")
OTHERS = ("alias_symbol", "prev_symbol", "alias symbols", "previous symbols", "alias", "previous symbol")

Groups = Mapping[str, tuple[str, ...]]
"""Approved symbol → all its names, itself first."""


def stable_id(name: str) -> str | None:
    """An Ensembl gene id without its version; None of any other name."""
    match = ENSEMBL.fullmatch(name.strip())
    return None if match is None or match[3] else match[1]


def synonyms_of(
    genes: Sequence[str], others: Iterable[Sequence[str]] = (), groups: Groups | None = None
) -> dict[str, int]:
    """Map other names of genes to their columns.

    Parameters
    ----------
    genes : sequence of str, length g
        Names of the columns, which never become synonyms of another column.
    others : iterable of sequences of str, length g
        Further names of the columns, such as ids or symbols; "" for none.
    groups : mapping, optional
        Symbols and their older names, from `read_aliases`.

    Returns
    -------
    dict of str to int
        Names that lead to exactly one column; versions of Ensembl ids are left out.
    """
    names = Counter(genes)
    columns: dict[str, set[int]] = defaultdict(set)
    for given in (genes, *others):
        for column, name in enumerate(given):
            key = stable_id(name) or name
            if key and key not in names:
                columns[key].add(column)
    if groups:
        column_of = {name: column for column, name in enumerate(genes) if names[name] == 1}
        for group in groups.values():
            present = [column_of[name] for name in group if name in column_of]
            if len(present) == 1:
                for name in group:
                    if name not in names:
                        columns[name].add(present[0])
    return {name: next(iter(of)) for name, of in columns.items() if len(of) == 1}


def read_aliases(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a table of gene symbols and their other names.

    Parameters
    ----------
    path : Path
        HGNC's `hgnc_complete_set.txt` or a custom download: the column symbol, and alias_symbol or
        prev_symbol, whose names are separated by "|" or ", ".

    Returns
    -------
    dict of str to tuple of str
        Approved symbol → all its names, itself first. A name of two symbols is left out.

    Raises
    ------
    SectionError
        If the columns are missing or the file is no text.
    """
    text = read_text(path, may_be_gzip=True, max_unpacked=MAX_LIST_BYTES)
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=detect_delimiter(text)))
    except csv.Error as error:
        raise SectionError(f"{path}: the table cannot be split into cells ({error})") from error
    header = [cell.strip().casefold() for cell in rows[0]]
    symbol = next((header.index(name) for name in APPROVED if name in header), None)
    others = [header.index(name) for name in OTHERS if name in header]
    if symbol is None or not others:
        raise SectionError(
            f"{path}: no columns symbol and alias_symbol or prev_symbol among {', '.join(header[:12])}; give "
            "HGNC's hgnc_complete_set.txt, or a table with these columns"
        )
    groups: dict[str, tuple[str, ...]] = {}
    for row in rows[1:]:
        cells = [cell.strip() for cell in row]
        if symbol >= len(cells) or not cells[symbol]:
            continue
        names = [
            name.strip()
            for column in others
            if column < len(cells)
            for name in re.split(r"[|,]", cells[column])
            if name.strip()
        ]
        groups[cells[symbol]] = tuple(dict.fromkeys((cells[symbol], *names)))
    claimed = Counter(name for group in groups.values() for name in group[1:])
    return {
        approved: (approved, *(n for n in group[1:] if claimed[n] == 1 and n not in groups))
        for approved, group in groups.items()
    }
