"""Open HDF5 files from anywhere: one sentence for any library error, and nothing read from other files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mclst.sections.errors import SectionError, pass_out_of_memory

if TYPE_CHECKING:
    import pandas as pd

MAX_OBJECTS, MAX_DEPTH = 30_000, 32
MAX_RATIO = 1100  # deflate shrinks zeros 1032 times
ALWAYS_ALLOWED_BYTES = 64 << 20  # Zstandard shrinks small constant arrays further
MAX_TABLE_BYTES = 4 << 30  # obs of 10 million spots with 40 columns
MAX_METADATA_BYTES = 16 << 20
MAX_NAME_LENGTH = 1000


@contextmanager
def open_hdf5(path: Path, kind: str) -> Iterator[h5py.File]:
    """Open a file for reading as `kind` ("AnnData", "a Space Ranger matrix"), once `check_hdf5` accepts it.

    Raises SectionError for every error inside the block except MemoryError.
    """
    try:
        with h5py.File(path, "r") as file:
            check_hdf5(file)
            yield file
    except SectionError:
        raise
    except Exception as error:  # on damaged bytes h5py and anndata raise nearly every type
        pass_out_of_memory(error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SectionError(f"{path}: the file cannot be read as {kind} ({reason})") from error


def check_hdf5(file: h5py.File) -> None:
    """Check all objects before any is read: data in this file alone, a finite tree, believable sizes.

    The whole file is checked, since AnnData's attributes may name objects anywhere in it.

    Raises
    ------
    ValueError
        If there is a soft or external link, external or virtual storage, a cycle, or more declared bytes
        than a file of this size can hold.
    """
    declared, seen, size = 0, 0, file.id.get_filesize()
    pending: list[tuple[Any, int]] = [(file, 0)]
    while pending:
        node, depth = pending.pop()
        seen += 1
        # A hard link may lead back to a parent. Objects count at each link, as often as they would be read.
        room = MAX_OBJECTS - seen - len(pending)
        if depth > MAX_DEPTH or room < 0 or (isinstance(node, h5py.Group) and len(node) > room):
            raise ValueError(f"it nests objects too deep, in a circle, or over {MAX_OBJECTS:,} of them")
        if isinstance(node, h5py.Group):
            for name in node:
                if node.get(name, getclass=True, getlink=True) is not h5py.HardLink:
                    raise ValueError(f"{name} is a link; copy the values into this file")
                pending.append((node[name], depth + 1))
        elif isinstance(node, h5py.Dataset):
            declared += _declared_bytes(node)
            if declared > ALWAYS_ALLOWED_BYTES + MAX_RATIO * size:
                raise ValueError(f"it declares {declared:,} bytes or more in a file of {size:,}")
            categories = node.attrs.get("categories")  # of AnnData before 0.8; may be linked nowhere
            if isinstance(categories, h5py.Reference) and categories:
                pending.append((file[categories], depth + 1))


def read_limited(group: h5py.Group, path: str, limit: int) -> Any:
    """Read an element of a checked file by anndata; ValueError if it declares more than `limit` bytes.

    Raises KeyError if there is no such element.
    """
    if not isinstance(group, h5py.Group) or path not in group:
        raise KeyError(path)
    pending, declared = [group[path]], 0
    while pending:
        node = pending.pop()
        if isinstance(node, h5py.Group):
            pending += node.values()
        elif isinstance(node, h5py.Dataset):
            declared += _declared_bytes(node)
    if declared > limit:
        raise ValueError(f"{path} declares {declared:,} bytes, where at most {limit:,} are expected")
    from anndata.io import read_elem  # slow to load, and most runs read no .h5ad before the first tile

    element = read_elem(group[path])
    check_sparse(element)
    return element


def check_sparse(matrix: Any) -> None:
    """Raise ValueError if a sparse matrix is damaged: scipy would read and write beyond its memory."""
    if hasattr(matrix, "indptr"):  # scipy itself is not loaded yet where nothing is sparse
        matrix.check_format(full_check=True)


def read_frame(file: h5py.File, path: str) -> pd.DataFrame:
    """Read obs or var of a checked file."""
    frame = read_limited(file, path, MAX_TABLE_BYTES)
    import pandas as pd  # anndata has loaded it

    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"{path} is not a table")
    return frame


def max_matrix_bytes(rows: int, columns: int) -> int:
    """Most bytes of an honest matrix, dense or sparse: a value and two indices per entry."""
    return MAX_METADATA_BYTES + 24 * rows * columns + 8 * (rows + columns)


def name_array(names: Iterable[Any], path: Path) -> NDArray[np.str_]:
    """Names [n] as a NumPy array, which takes the longest name's width in every row."""
    texts = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    if (longest := max(map(len, texts), default=0)) > MAX_NAME_LENGTH:
        raise SectionError(f"{path}: a spot or gene has a name of {longest:,} characters; shorten it")
    return np.array(texts, dtype=np.str_)


def _declared_bytes(data: h5py.Dataset) -> int:
    # The shape of virtual data is asked last: HDF5 would open the other files for it.
    if data.external or data.is_virtual:
        raise ValueError(f"{data.name} is kept in other files; copy the values into this one")
    return 0 if data.shape is None else math.prod(data.shape) * data.id.get_type().get_size()
