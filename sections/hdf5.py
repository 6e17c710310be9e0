"""Open HDF5 files and turn any library error into one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from mclst.sections.errors import SectionError


@contextmanager
def open_hdf5(path: Path, kind: str) -> Iterator[h5py.File]:
    """Open a file for reading as `kind` ("AnnData", "a Space Ranger matrix").

    Raises SectionError for every error inside the block except MemoryError.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (SectionError, MemoryError):
        raise
    except Exception as error:  # on damaged bytes h5py and anndata raise nearly every type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SectionError(f"{path}: the file cannot be read as {kind} ({reason})") from error
