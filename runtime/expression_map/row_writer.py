"""Rows of a map written as they are predicted, in any order; base of `MapWriter` and `PartWriter`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.result import RetrievalResult
from mclst.runtime.errors import write_error
from mclst.runtime.expression_map.journal import read_journal
from mclst.runtime.expression_map.lock import lock_output
from mclst.runtime.expression_map.row_file import ResumeState, RowFile


class RowWriter:
    """Writes the rows of a float32 [n, G] matrix to a locked hidden file; a context manager.

    A failure before `begin` leaves nothing; after it, the rows stay for the next run's `resume`.
    measured: whether results are MeasuredResults.
    Methods raise OutputError if the file system refuses.
    """

    def __init__(self, path: Path, shape: tuple[int, int], *, measured: bool = False) -> None:
        self.path = path
        self.shape = shape
        self.measured = measured
        self._rows: RowFile | None = None
        self._keep = False

    def _lock(self, offset: int) -> RowFile:
        """Lock the output; its rows begin at byte `offset`. Raises OSError or OutputError."""
        lock = lock_output(self.path)
        # A stopped run's rows stay until `begin` gives them up, whatever goes wrong before.
        self._keep = lock.resumable and lock.journal.exists()
        self._rows = RowFile(lock, self.shape, offset, measured=self.measured)
        return self._rows

    @property
    def _open_rows(self) -> RowFile:
        if self._rows is None:
            raise ValueError(f"the writer of {self.path} is closed")
        return self._rows

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Turn an OSError into an OutputError that says what to do; a ResourceError if memory ran out."""
        try:
            yield
        except OSError as error:
            raise write_error(self.path, error, "free space or choose another --out") from error

    @property
    def done(self) -> NDArray[np.bool_]:
        """Bool [n]: spots whose row is written."""
        return self._open_rows.done

    @property
    def stopped_run(self) -> bool:
        """Whether a stopped run of this output left rows; `resume` or `begin` decides about them."""
        return self._open_rows.lock.journal.exists()

    def stopped_fingerprint(self) -> dict[str, str] | None:
        """What a stopped run's rows come from, by name; None if there is none, or its journal is damaged."""
        journal = read_journal(self._open_rows.lock.journal)
        return None if journal is None else journal[0]

    @property
    def resumable_rows(self) -> int:
        """Number of rows that stay for the next run if this one stops now."""
        return 0 if self._rows is None else self._rows.resumable_rows

    def resume(self, fingerprint: Mapping[str, str]) -> ResumeState | None:
        """Take over a stopped run's rows if they come from the same inputs.

        Parameters
        ----------
        fingerprint : mapping of str to str
            What the rows come from, by name: hashes, settings, versions.

        Returns
        -------
        ResumeState or None
            None if there was no stopped run.
        """
        with self._refusals():
            return self._open_rows.resume(fingerprint)

    def begin(self, fingerprint: Mapping[str, str]) -> None:
        """Make all rows, written and to come, outlive this process; give up those of a stopped run."""
        with self._refusals():
            self._keep = False
            self._open_rows.begin(fingerprint)

    def write(self, rows: NDArray[np.integer[Any]], result: RetrievalResult) -> None:
        """Write some rows; a row written again is replaced.

        Parameters
        ----------
        rows : int array [b]
            Distinct row numbers of the spots table, 0 to n - 1.
        result : RetrievalResult
            Of these b spots.

        Raises
        ------
        OutputError
            If the file system refuses.
        ValueError
            If rows and result do not fit each other or the map.
        """
        shape = np.shape(result.expression)
        lengths = {len(rows), len(result.nearest), len(result.effective_k)}
        if shape != (len(rows), self.shape[1]) or len(lengths) > 1:
            raise ValueError(f"{len(rows)} rows of {self.shape[1]} genes cannot take {shape} values")
        if not len(rows):
            return
        if np.min(rows) < 0 or np.max(rows) >= self.shape[0] or len(np.unique(rows)) < len(rows):
            raise ValueError(f"rows must be distinct and in 0 … {self.shape[0] - 1}")
        with self._refusals():
            self._open_rows.write(rows, result)

    def keep_encoded(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Let the encoder's values of tiles outlive this process, as rows do; after `begin`, else nothing.

        Parameters
        ----------
        rows : int64 [m]
        values : float32 [m, W]

        Raises
        ------
        OSError
            If the file system refuses; what was kept before is still there.
        """
        self._open_rows.keep_encoded(rows, values)

    def read_encoded(
        self, wanted: NDArray[np.bool_], width: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return what `keep_encoded` kept in the run that this one resumes.

        Parameters
        ----------
        wanted : bool [n]
            Rows of interest.
        width : int
            Values per tile, W.

        Returns
        -------
        rows : int64 [m]
            Ascending.
        values : float32 [m, W]
        """
        with self._refusals():
            return self._open_rows.read_encoded(wanted, width)

    def close(self) -> int:
        """Release the lock; return the number of rows kept for the next run. May be called again."""
        if self._rows is None:
            return 0
        rows, self._rows = self._rows, None
        count = rows.resumable_rows
        rows.close(keep=count > 0 or self._keep)
        return count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
