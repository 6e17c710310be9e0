"""A slide's tiles in parts: each run writes one part's rows, and the last run merges them into the map."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mclst.kernels.definition.result import RetrievalResult
from mclst.runtime.errors import OutputError
from mclst.runtime.expression_map.lock import lock_output
from mclst.runtime.expression_map.row_file import RowFile
from mclst.runtime.expression_map.row_writer import RowWriter
from mclst.runtime.progress import Notify
from mclst.runtime.trust.measures import MeasuredResult

MERGE_ROWS = 512
"""Rows copied at a time, so that memory does not grow with the map."""


@dataclass(frozen=True)
class SlidePart:
    """A run's share of a slide split into `parts`: one `part`, counted from 0, or (None) the merge of all.

    A part's rows wait in hidden files next to the map; the merging run takes them and publishes the map.
    """

    parts: int
    part: int | None = None

    def path(self, out: Path, part: int) -> Path:
        """Path after which a part's hidden files are named."""
        return out.with_name(f"{out.stem}.part-{part + 1}-of-{self.parts}")


class PartWriter(RowWriter):
    """Writes the rows of one part for a later run to merge."""

    def __init__(
        self, out: Path, share: SlidePart, shape: tuple[int, int], *, measured: bool = False
    ) -> None:
        """Lock the part's file.

        Parameters
        ----------
        out : Path
            The map.
        share : SlidePart
            With a part.
        shape : tuple of int
            [spots, genes] of the whole map: rows keep their place, and other parts' rows are holes in the
            file.
        measured : bool
            Whether results are MeasuredResults.

        Raises
        ------
        OutputError
            If the file system refuses or has no locks.
        """
        assert share.part is not None, "a part"
        super().__init__(share.path(out, share.part), shape, measured=measured)
        with self._refusals():
            lock = self._lock(0).lock
        if not lock.resumable:
            self.close()
            raise OutputError(
                f"{self.path.parent} has no file locks, which a slide in parts needs; leave --shard-tiles out"
            )

    def close(self) -> int:
        """Release the lock; return the number of rows kept for the next run. May be called again."""
        if self._rows is not None and self._rows.resumable_rows:
            os.fsync(self._rows.lock.handle)
        return super().close()


def take_parts(
    out: Path, share: SlidePart, into: RowWriter, genes: int, fingerprint: Mapping[str, str], notify: Notify
) -> int:
    """Write the parts' rows that `into` lacks into it; return their number.

    Only intact rows with the same fingerprint are taken. `notify` is called for one with another fingerprint,
    such as one made with another batch size. Raises OutputError if a part is still being written.
    """
    count = 0
    for part in range(share.parts):
        lock = lock_output(share.path(out, part))
        source = RowFile(lock, (len(into.done), genes), 0, measured=into.measured)
        try:
            state = source.resume(fingerprint)
            if state is not None and state.changed:
                notify(
                    f"part {part + 1} of {share.parts} was made with another: {state.changed}; "
                    f"its {state.rows:,} tiles are done again"
                )
            missing = np.flatnonzero(source.done & ~into.done)
            for start in range(0, len(missing), MERGE_ROWS):
                rows = missing[start : start + MERGE_ROWS]
                values = [source.read(source.row_offset(row), 4 * genes) for row in rows.tolist()]
                expression = np.frombuffer(b"".join(values), "<f4").reshape(len(rows), genes)
                columns: dict[str, Any] = {name: of[rows] for name, of in source.columns().items()}
                kind = MeasuredResult if into.measured else RetrievalResult
                into.write(rows, kind(expression, **columns))
            count += len(missing)
        finally:
            source.close(keep=lock.journal.exists())
    return count


def remove_parts(out: Path) -> None:
    """Remove the files of parts of a published map, also of another split; a live run's stay."""
    pattern = re.compile(re.escape(f".{out.stem}.part-") + r"(\d{1,9})-of-(\d{1,9})\.(?:rows|journal)")
    matches = map(pattern.fullmatch, os.listdir(out.absolute().parent))
    for part, parts in {match.groups() for match in matches if match is not None}:
        with suppress(OutputError):
            lock_output(SlidePart(int(parts)).path(out, int(part) - 1)).remove()
