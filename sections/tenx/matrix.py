"""Feature-barcode matrices of 10x Genomics: `.h5`, read whole or in blocks of rows, or a folder of `.mtx`."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import scipy.io
import scipy.sparse as sp
from numpy.typing import NDArray

from mclst.sections.errors import SectionError
from mclst.sections.hdf5 import name_array, open_hdf5
from mclst.sections.tables.text_file import read_text

GENE_EXPRESSION = "Gene Expression"


class Matrix(NamedTuple):
    """counts: [n, g].  spot: barcodes [n].  genes: symbols [g].  ids: of the genes [g], "" where unknown."""

    counts: Any
    spot: NDArray[np.str_]
    genes: NDArray[np.str_]
    ids: NDArray[np.str_]


@dataclass(frozen=True)
class MatrixFile:
    """An open .h5 whose rows are read in blocks.

    group: the HDF5 group.  spots, features: sizes.  indptr: int64 [spots + 1].
    columns: of Gene Expression features, int64 [g], ascending.  genes, ids: as of `Matrix`.
    """

    path: Path
    group: h5py.Group
    spots: int
    features: int
    indptr: NDArray[np.int64]
    columns: NDArray[np.int64]
    genes: NDArray[np.str_]
    ids: NDArray[np.str_]

    def block(self, rows: slice) -> Any:
        """Counts of some rows, CSR [rows, g]."""
        first, last = int(self.indptr[rows.start]), int(self.indptr[rows.stop])
        data, indices = self.group["data"][first:last], self.group["indices"][first:last]
        shape = (rows.stop - rows.start, self.features)
        matrix = sp.csr_matrix((data, indices, self.indptr[rows.start : rows.stop + 1] - first), shape=shape)
        matrix.check_format(full_check=True)
        return matrix if len(self.columns) == self.features else matrix[:, self.columns]

    def blocks(self, entries: int) -> Iterator[tuple[slice, Any]]:
        """Blocks of whole rows with about `entries` stored values, in order."""
        start = 0
        while start < self.spots:
            end = int(np.searchsorted(self.indptr, self.indptr[start] + entries, "right")) - 1
            rows = slice(start, min(max(end, start + 1), self.spots))
            yield rows, self.block(rows)
            start = rows.stop


def read_matrix(path: Path) -> Matrix:
    """Read an .h5 or a matrix folder; features other than Gene Expression are dropped.

    Raises SectionError if a file is damaged or its parts do not belong together.
    """
    if not path.is_file():
        return _read_folder(path)
    with open_matrix(path) as file:
        spot = name_array(file.group["barcodes"][:], path)
        return Matrix(file.block(slice(0, file.spots)), spot, file.genes, file.ids)


def read_features(path: Path) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Symbols and ids of the Gene Expression features of an .h5 or a matrix folder, without its counts."""
    if not path.is_file():
        return _read_feature_table(path)[1:3]
    with open_matrix(path) as file:
        return file.genes, file.ids


@contextmanager
def open_matrix(path: Path) -> Iterator[MatrixFile]:
    """Open an .h5; raises SectionError as `read_matrix` does, for what happens inside too."""
    with open_hdf5(path, "a 10x matrix") as file:
        if "matrix/features/name" not in file:
            raise SectionError(f"{path}: there is no matrix/features/name; give a 10x matrix")
        group = file["matrix"]
        features, spots = (int(size) for size in group["shape"][:])
        genes, listed = name_array(group["features/name"][:], path), int(group["barcodes"].size)
        if (features, spots) != (len(genes), listed):
            raise SectionError(_size_mismatch(path, features, spots, len(genes), listed))
        _check_entries(path, group["data"].size, features, spots)
        typed = "feature_type" in group["features"]
        kinds = name_array(group["features/feature_type"][:], path) if typed else None
        identified = "id" in group["features"]
        ids = name_array(group["features/id"][:], path) if identified else np.full(len(genes), "", np.str_)
        lengths = {len(genes), len(ids), len(genes if kinds is None else kinds)}
        indptr = np.asarray(group["indptr"][:], np.int64)
        if len(lengths) > 1 or len(indptr) != spots + 1:
            raise SectionError(f"{path}: the lists of the matrix differ in length; it is damaged")
        if indptr[0] != 0 or indptr[-1] != group["data"].size or (np.diff(indptr) < 0).any():
            raise ValueError("its rows do not follow one another")
        columns = _gene_columns(path, kinds, len(genes))
        yield MatrixFile(path, group, spots, features, indptr, columns, genes[columns], ids[columns])


def _gene_columns(path: Path, kinds: NDArray[np.str_] | None, features: int) -> NDArray[np.int64]:
    """Columns of gene expression; antibodies, controls and other captures are left out."""
    keep = np.arange(features) if kinds is None else np.flatnonzero(kinds == GENE_EXPRESSION)
    if not len(keep):
        raise SectionError(f"{path}: no feature is of type {GENE_EXPRESSION}; give a gene expression matrix")
    return keep.astype(np.int64)


def is_matrix_folder(folder: Path) -> bool:
    """Whether a folder holds a matrix.mtx[.gz]."""
    return bool(_existing(folder, "matrix.mtx"))


def _one_of(folder: Path, *names: str) -> Path:
    """Find the one file of a matrix folder with one of these names, plain or .gz."""
    paths = _existing(folder, *names)
    if len(paths) > 1:
        raise SectionError(f"{paths[0]} and {paths[1]} both exist; keep one")
    if not paths:
        raise SectionError(
            f"{folder}: there is no {' or '.join(names)} (or .gz); the matrix folder is incomplete"
        )
    return paths[0]


def _existing(folder: Path, *names: str) -> list[Path]:
    candidates = [folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz")]
    return [path for path in candidates if path.is_file()]


def _read_folder(folder: Path) -> Matrix:
    path, barcodes = _one_of(folder, "matrix.mtx"), _one_of(folder, "barcodes.tsv")
    spot = np.array([cells[0] for cells in _lines(barcodes)], dtype=np.str_)
    columns, genes, ids, features = _read_feature_table(folder)
    counts = _read_mtx(path, features, len(spot))
    return Matrix(counts[:, columns], spot, genes, ids)


def _read_feature_table(folder: Path) -> tuple[NDArray[np.int64], NDArray[np.str_], NDArray[np.str_], int]:
    """Columns of gene expression, their symbols and ids, and the number of all features."""
    features = _one_of(folder, "features.tsv", "genes.tsv")
    rows = _lines(features)
    short = next((number for number, cells in enumerate(rows, start=1) if len(cells) < 2), None)
    if short is not None:
        raise SectionError(
            f"{features}: line {short} has no gene name; give an id, a name and a type by tabs"
        )
    ids, genes = (np.array([cells[column] for cells in rows], dtype=np.str_) for column in (0, 1))
    typed = all(len(cells) > 2 for cells in rows)  # the old genes.tsv has no types
    kinds = np.array([cells[2] for cells in rows], dtype=np.str_) if typed else None
    columns = _gene_columns(features, kinds, len(genes))
    return columns, genes[columns], ids[columns], len(genes)


def _read_mtx(path: Path, features: int, barcodes: int) -> Any:
    """Read features x barcodes as barcodes x features."""
    try:
        # The header is checked before scipy allocates memory for what it claims.
        rows, columns, entries, *_ = scipy.io.mminfo(path)
        if (rows, columns) != (features, barcodes):
            raise SectionError(_size_mismatch(path, rows, columns, features, barcodes))
        _check_entries(path, entries, rows, columns)
        return sp.csr_matrix(scipy.io.mmread(path).T)
    except (OSError, EOFError, ValueError, TypeError, OverflowError, zlib.error) as error:
        if isinstance(error, SectionError):
            raise
        raise SectionError(f"{path}: the matrix cannot be read ({error})") from error


def _check_entries(path: Path, entries: int, rows: int, columns: int) -> None:
    if entries > rows * columns:
        raise SectionError(
            f"{path}: the matrix claims {entries} entries for {rows} x {columns}; it is damaged"
        )


def _size_mismatch(
    path: Path, features: int, barcodes: int, listed_features: int, listed_barcodes: int
) -> str:
    return (
        f"{path}: the matrix is {features} features x {barcodes} barcodes, and the lists hold "
        f"{listed_features} and {listed_barcodes}; the files do not belong together"
    )


def _lines(path: Path) -> list[list[str]]:
    text = read_text(path, may_be_gzip=True).replace("\r\n", "\n").rstrip("\n")
    return [[cell.strip() for cell in line.split("\t")] for line in text.split("\n")]
