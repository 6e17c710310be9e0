"""Read a model's gene list and reorder a section's counts to it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mclst.sections.counts import are_whole
from mclst.sections.errors import SectionError
from mclst.sections.section import Section
from mclst.sections.tables.delimited import detect_delimiter
from mclst.sections.tables.synonyms import stable_id
from mclst.sections.tables.text_file import MAX_LIST_BYTES, read_text

MOST_LISTED = 20
HEADERS = frozenset({"", "gene", "genes", "gene_name", "gene_names", "gene_symbol", "symbol", "name"})


def match_genes(section: Section, genes: Sequence[str]) -> NDArray[np.float32]:
    """Select a section's counts of the model's genes, by their names or the section's synonyms.

    Parameters
    ----------
    section : Section
    genes : sequence of str
        Genes of the model.

    Returns
    -------
    ndarray of float32, shape (n, G)
        Columns in the order of `genes`.

    Raises
    ------
    SectionError
        If genes are missing (they are counted and listed), one appears in the section twice, or two of the
        model's genes are one of the section's.
    """
    columns = gene_columns(section, genes)
    missing = [gene for gene, column in zip(genes, columns.tolist(), strict=True) if column < 0]
    if missing:
        raise SectionError(
            f"{section.path}: section {section.name} lacks {len(missing)} of the model's {len(genes)} genes "
            f"({list_genes(missing)}); give a section measured with the model's gene names, or their other "
            "names with --gene-aliases"
        )
    names, occurrences = np.unique(section.genes, return_counts=True)
    repeated = set(names[occurrences > 1].tolist())
    ambiguous = next((gene for gene in genes if gene in repeated), None)
    if ambiguous is not None:
        raise SectionError(
            f"{section.path}: gene {ambiguous} appears in section {section.name} more than once; "
            "keep the one that the model uses, or name it by its Ensembl id"
        )
    order = np.argsort(columns, kind="stable")
    twice = np.flatnonzero(columns[order][1:] == columns[order][:-1])
    if len(twice):
        one, other = order[twice[0]], order[twice[0] + 1]
        raise SectionError(
            f"{section.path}: {genes[one]} and {genes[other]} of the model both are gene "
            f"{section.genes[columns[one]]} of section {section.name}; keep one in the list"
        )
    return np.asarray(section.counts[:, columns].toarray(), dtype=np.float32)


def gene_columns(section: Section, genes: Sequence[str]) -> NDArray[np.int64]:
    """Column of each of the model's genes in a section, int64 [G]; -1 where it is not measured.

    A name of the section comes before its synonyms; the version of an Ensembl id does not count.
    """
    names, first = np.unique(section.genes, return_index=True)
    column_of = dict(zip(names.tolist(), first.tolist(), strict=True))
    synonyms = section.synonyms
    return np.array(
        [column_of.get(gene, synonyms.get(gene, synonyms.get(stable_id(gene) or "", -1))) for gene in genes],
        dtype=np.int64,
    )


def counts_notes(section: Section, genes: Sequence[str]) -> list[str]:
    """Say what is unusual of a section's counts.

    Parameters
    ----------
    section : Section
    genes : sequence of str
        The model's.

    Returns
    -------
    list of str
        Sentences: genes under another name, values that are not whole.
    """
    notes = [renamed] if (renamed := _renamed_genes(section, genes)) else []
    if not are_whole(section.counts):
        notes.append(
            f"section {section.name} ({section.path.name}, {section.counts_from}) holds values that are not "
            "whole counts; give counts, or choose the normalization none for what is normalized already"
        )
    return notes


def _renamed_genes(section: Section, genes: Sequence[str]) -> str:
    """Say which of the model's genes a section has under another name; "" if none."""
    columns = gene_columns(section, genes)
    pairs = [
        f"{gene} is {section.genes[column]}"
        for gene, column in zip(genes, columns.tolist(), strict=True)
        if column >= 0 and section.genes[column] != gene
    ]
    if not pairs:
        return ""
    count = f"{len(pairs):,} of the model's genes have another name in section {section.name}"
    return f"{count}: {list_genes(pairs)}"


def list_genes(genes: Sequence[str]) -> str:
    """Up to 20 names, and how many more there are."""
    more = f" and {len(genes) - MOST_LISTED:,} more" if len(genes) > MOST_LISTED else ""
    return ", ".join(genes[:MOST_LISTED]) + more


def read_gene_list(path: Path) -> list[str]:
    """Read a model's genes in order.

    Parameters
    ----------
    path : Path
        A .npy of strings, a .csv or .tsv (first column), or a text file with one name per line.

    Returns
    -------
    list of str

    Raises
    ------
    SectionError
        If a gene is repeated or blank, a line holds several genes, or the array holds Python objects.
    """
    path = Path(path)
    start = b""
    if os.path.isfile(path):
        with path.open("rb") as file:
            start = file.read(6)
    genes = _from_npy(path) if start == b"\x93NUMPY" else _from_text(path)
    if not genes:
        raise SectionError(f"{path}: the list holds no gene")
    if all(re.fullmatch(r"\d+", gene) for gene in genes):
        raise SectionError(
            f"{path}: the list holds numbers, not gene names; put the names into the first column"
        )
    seen: dict[str, int] = {}
    for number, gene in enumerate(genes, start=1):
        if not gene:
            raise SectionError(f"{path}: gene {number} of the list is blank")
        if gene in seen:
            raise SectionError(
                f"{path}: {gene} is gene {seen[gene]} and gene {number} of the list; a gene may appear once"
            )
        seen[gene] = number
    return genes


def _from_text(path: Path) -> list[str]:
    text = read_text(path, may_be_gzip=True, max_unpacked=MAX_LIST_BYTES)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if path.suffix.lower() in (".csv", ".tsv"):
        delimiter = detect_delimiter(text)
        cells = [line.split(delimiter)[0].strip().strip('"').strip() for _, line in lines]
        return cells[1:] if cells[0].casefold() in HEADERS else cells
    for number, line in lines:
        if re.search(r"[\t,;]", line.strip()):
            raise SectionError(
                f"{path}: line {number} holds several names; give one per line, or a .csv or .tsv"
            )
    return [line.strip() for _, line in lines]


def _from_npy(path: Path) -> list[str]:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        if "pickle" not in str(error):
            raise SectionError(f"{path}: the array cannot be read ({error})") from error
        raise SectionError(
            f"{path}: the array holds Python objects, which could run code when read; if you trust it, save "
            "it again with numpy.save(path, numpy.load(path, allow_pickle=True).astype(str))"
        ) from error
    if values.ndim != 1 or values.dtype.kind not in "US":
        raise SectionError(
            f"{path}: the array is {values.dtype} of shape {values.shape}; give one row of strings"
        )
    try:
        return [value.strip() for value in values.astype(np.str_).tolist()]
    except UnicodeDecodeError as error:
        raise SectionError(
            f"{path}: the array holds names that are not ASCII; save it with .astype(str)"
        ) from error
