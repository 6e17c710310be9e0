"""HDF5 files opened at one border: whatever the libraries raise on a damaged one becomes one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from mclst.sections.errors import SectionError


@contextmanager
def opened(path: Path, what: str) -> Iterator[h5py.File]:
    """Open a file to read it within the block as `what` ("AnnData", "a Space Ranger matrix").

    Raises SectionError for any other error of the block but MemoryError: on damaged bytes h5py and anndata raise
    nearly every kind there is.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (SectionError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SectionError(f"{path}: the file cannot be read as {what} ({reason})") from error
