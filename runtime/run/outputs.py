"""Where a run writes, checked before it works."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mclst.runtime.atomic import check_distinct, check_writable, remove_stale
from mclst.runtime.errors import OutputError
from mclst.runtime.expression_map.lock import journal_of
from mclst.runtime.report.files import Files, check_paths
from mclst.runtime.run.options import RunOptions
from mclst.runtime.run.report import check_report
from mclst.sections.location import local_path

if TYPE_CHECKING:
    from mclst.runtime.slide.base import Slide
    from mclst.sections.section import Spots


@dataclass(frozen=True)
class Outputs:
    """Paths of the map and of the files next to it; None: not written.

    content: what `files` hold; files: path by kind, see Files.
    """

    map: Path
    sheet: Path | None = None
    dense: Path | None = None
    report: Path | None = None
    content: Files = field(default_factory=Files)
    files: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, out: Path, options: RunOptions, content: Files) -> Outputs:
        """Name all files after the map `out`."""
        if not out.name:
            raise OutputError(f"{str(out)!r} names no file to write; choose another --out")
        return cls(
            out,
            out.with_suffix(".genes.png") if options.picture else None,
            out.with_suffix(".genes.ome.tif") if options.genes else None,
            out.with_suffix(".run.json") if options.report else None,
            content,
            content.paths(out),
        )

    @property
    def all(self) -> tuple[Path | None, ...]:
        """Every path."""
        return (self.map, self.sheet, self.dense, self.report, *self.files.values())

    def check_map(self, slide: Slide, spots: Spots, bundle: Path | None, *, overwrite: bool) -> None:
        """Raise OutputError if the map exists, or if an output is an input, even with `overwrite`."""
        check_writable(self.map, overwrite=overwrite)
        check_distinct(self.all, (local_path(slide.path), spots.path, bundle))

    def check_others(self, *, overwrite: bool) -> None:
        """Raise OutputError if another output exists; remove leftovers of dead runs."""
        for path in filter(None, (self.sheet, self.dense)):
            check_writable(path, overwrite=overwrite)
            remove_stale(path)
        check_paths(self.files, overwrite=overwrite)
        if self.report is not None:
            check_report(self.report, overwrite=overwrite)
            remove_stale(self.report)

    @property
    def was_stopped(self) -> bool:
        """Whether a stopped run of this map left its rows; its pictures may exist already."""
        # Not Path.exists, which raises where the name is too long.
        return os.path.exists(journal_of(self.map))
