"""A slide's tiles in parts: each part's rows wait beside the map, and a later run takes them over."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.result import RetrievalResult
from mclst.runtime.errors import OutputError
from mclst.runtime.expression_map.lock import claim
from mclst.runtime.expression_map.row_file import ResumeState, RowFile
from mclst.runtime.progress import Tell

ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class SlidePart:
    """What a run does of a slide in `parts`: the tiles of one part, counted from 0, or (None) all that is left.

    A part's rows are kept in hidden files beside the map; the run with None takes them over and publishes the map.
    """

    parts: int
    part: int | None = None

    def place(self, out: Path, part: int) -> Path:
        """What a part's hidden files are named after."""
        return out.with_name(f"{out.stem}.part-{part + 1}-of-{self.parts}")


class RowSink(Protocol):
    """Where the rows of a map go as they come; see `MapWriter`."""

    @property
    def done(self) -> NDArray[np.bool_]:
        """Bool [n]: spots that have their row."""

    @property
    def stopped_run(self) -> bool:
        """Whether a stopped run has left something here."""

    @property
    def kept(self) -> int:
        """Rows that stay for the next run if this one stops now."""

    def carry_on(self, made_of: Mapping[str, str]) -> ResumeState | None:
        """Take over the rows of a stopped run of the same."""

    def begin(self, made_of: Mapping[str, str]) -> None:
        """From now on what is written outlives this process."""

    def write(self, rows: NDArray[np.int64], found: RetrievalResult) -> None:
        """Write some rows [b]; found: of b spots."""


class PartWriter:
    """The rows of one part, for a later run; a context manager. Raises OutputError where the file system refuses."""

    def __init__(self, out: Path, share: SlidePart, shape: tuple[int, int]) -> None:
        """out: the map. shape: of the whole map, [spots, genes]; the file has holes where other parts' rows are."""
        assert share.part is not None, "a part"
        self.path = share.place(out, share.part)
        self.shape = shape
        try:
            taken = claim(self.path)
        except OSError as error:
            raise _refusal(self.path, error) from error
        if not taken.keeps:
            taken.remove()
            raise OutputError(
                f"{self.path.parent} has no file locks, which a slide in parts needs; leave --shard-tiles out"
            )
        self._rows = RowFile(taken, shape, 0)

    @property
    def done(self) -> NDArray[np.bool_]:
        """See RowSink."""
        return self._rows.done

    @property
    def stopped_run(self) -> bool:
        """See RowSink."""
        return self._rows.claim.journal.exists()

    @property
    def kept(self) -> int:
        """See RowSink."""
        return self._rows.kept

    def carry_on(self, made_of: Mapping[str, str]) -> ResumeState | None:
        """See RowSink."""
        return self._rows.carry_on(made_of)

    def begin(self, made_of: Mapping[str, str]) -> None:
        """See RowSink."""
        try:
            self._rows.begin(made_of)
        except OSError as error:
            raise _refusal(self.path, error) from error

    def write(self, rows: NDArray[np.int64], found: RetrievalResult) -> None:
        """See RowSink."""
        try:
            self._rows.write(rows, found)
        except OSError as error:
            raise _refusal(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rows.kept:
            os.fsync(self._rows.claim.handle)
        self._rows.close(keep=self._rows.kept > 0)


def take_parts(
    out: Path, share: SlidePart, into: RowSink, genes: int, made_of: Mapping[str, str], tell: Tell
) -> int:
    """Write the parts' rows that `into` lacks into it; how many came. Only rows of the same run, whole ones, come.

    tell: told of a part that was made otherwise, such as in batches of another size. Raises OutputError where a part is
    still being written.
    """
    came = 0
    for part in range(share.parts):
        taken = claim(share.place(out, part))
        rows = RowFile(taken, (len(into.done), genes), 0)
        try:
            found = rows.carry_on(made_of)
            if found is not None and found.changed:
                tell(
                    f"part {part + 1} of {share.parts} was made with another: {found.changed}; its {found.rows:,} tiles "
                    "are done again"
                )
            wanted = np.flatnonzero(rows.done & ~into.done) if found is not None else np.empty(0, np.int64)
            for start in range(0, len(wanted), ROWS_AT_ONCE):
                some = wanted[start : start + ROWS_AT_ONCE]
                values = [rows.read(rows.place(row), 4 * genes) for row in some.tolist()]
                expression = np.frombuffer(b"".join(values), "<f4").reshape(len(some), genes)
                into.write(some, RetrievalResult(expression, rows.nearest[some], rows.effective_k[some]))
            came += len(wanted)
        finally:
            rows.close(keep=taken.journal.exists())
    return came


def remove_parts(out: Path, share: SlidePart) -> None:
    """Remove the parts' files, once the map stands."""
    for part in range(share.parts):
        claim(share.place(out, part)).remove()


def _refusal(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written ({error.strerror or error}); free space or choose another --out"
    )
