"""The bank: embeddings and expression of the reference spots, in one HDF5 file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from mclst.runtime.bundle.manifest import MAX_NAME_LENGTH
from mclst.runtime.errors import BundleError
from mclst.sections.errors import pass_out_of_memory

CHECKED_BYTES = 1 << 20
"""Checked at once, so that what is made of so many stays in the processor's cache."""


@dataclass(frozen=True)
class Bank:
    """M reference spots.

    Attributes
    ----------
    embedding : float32 [M, D]
    expression : float32 [M, G]
        Normalized as the manifest says.
    genes : str [G]
    spot, section : str [M]
        Names.
    """

    embedding: NDArray[np.float32]
    expression: NDArray[np.float32]
    genes: NDArray[np.str_]
    spot: NDArray[np.str_]
    section: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.embedding)

    def __repr__(self) -> str:
        rows, dim = self.embedding.shape
        return (
            f"Bank({rows} spots of {len(np.unique(self.section))} sections, {dim}-d, {len(self.genes)} genes)"
        )


def bank_bytes(bank: Bank) -> bytes:
    """Content of the HDF5 file, made in memory since HDF5 does not report a full disk."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["embedding"] = bank.embedding.astype(np.float32, copy=False)
        file["expression"] = bank.expression.astype(np.float32, copy=False)
        for name in ("genes", "spot", "section"):
            file.create_dataset(
                name, data=[str(text) for text in getattr(bank, name)], dtype=h5py.string_dtype()
            )
    return buffer.getvalue()


def plain_dataset(file: h5py.File, name: str, rank: int, path: str | Path, size: int) -> h5py.Dataset:
    """Get a plain dataset: no links, no other files, no filters, no more than the file's `size` bytes.

    path: for messages. Raises BundleError.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(
        file[name], h5py.Dataset
    ):
        raise BundleError(f"{path} has no dataset /{name}; export the bundle again")
    data = file[name]
    if data.external or data.is_virtual or data.chunks is not None or data.ndim != rank:
        raise BundleError(f"{path}: /{name} is not a plain array of rank {rank}; export the bundle again")
    if data.nbytes > size:
        raise BundleError(f"{path}: /{name} declares more than the file holds; export the bundle again")
    return data


def _floats(file: h5py.File, name: str, path: Path) -> NDArray[np.float32]:
    data = plain_dataset(file, name, 2, path, path.stat().st_size)
    if data.dtype != np.float32:
        raise BundleError(f"{path}: /{name} is {data.dtype}, not float32; export the bundle again")
    values: NDArray[np.float32] = data[:]
    step = max(1, CHECKED_BYTES // max(1, 4 * values.shape[1]))
    for start in range(0, len(values), step):
        bad = np.flatnonzero(~np.isfinite(values[start : start + step]).all(axis=1))
        if len(bad):
            raise BundleError(
                f"{path}: /{name} is not finite in row {start + bad[0]}; export the bundle again"
            )
    return values


def _texts(file: h5py.File, name: str, path: Path) -> NDArray[np.str_]:
    texts = plain_dataset(file, name, 1, path, path.stat().st_size).asstr()[:]
    longest = max(map(len, texts), default=0)
    if longest > MAX_NAME_LENGTH:
        raise BundleError(f"{path}: /{name} holds a name of {longest:,} letters; export the bundle again")
    return np.asarray(texts, dtype=np.str_)


def read_gene_names(path: Path) -> NDArray[np.str_]:
    """Read the names alone of a bank's genes; raises BundleError if they cannot be read."""
    with _opened(path) as file:
        return _texts(file, "genes", path)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The bank's file; what keeps it from being read is a BundleError."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except BundleError:
        raise
    except Exception as error:  # h5py raises nearly any type on damaged bytes
        pass_out_of_memory(error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(f"{path} is not a readable bank ({reason}); export the bundle again") from error


def read_bank(path: Path) -> Bank:
    """Read bank.h5; raises BundleError if it is damaged or its parts do not fit together."""
    with _opened(path) as file:
        bank = Bank(
            _floats(file, "embedding", path),
            _floats(file, "expression", path),
            _texts(file, "genes", path),
            _texts(file, "spot", path),
            _texts(file, "section", path),
        )
    rows = {len(bank.embedding), len(bank.expression), len(bank.spot), len(bank.section)}
    if len(rows) != 1 or not len(bank) or bank.expression.shape[1] != len(bank.genes):
        raise BundleError(f"{path}: the parts of the bank have different lengths; export the bundle again")
    if len(np.unique(bank.genes)) != len(bank.genes):
        raise BundleError(f"{path}: a gene occurs twice in the bank; export the bundle again")
    return bank
