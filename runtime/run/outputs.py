"""Where a run writes, checked before it works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mclst.runtime.atomic import check_apart, check_writable, remove_stale
from mclst.runtime.errors import OutputError
from mclst.runtime.report.files import Files, check_places
from mclst.runtime.run.report import check_report
from mclst.runtime.slide.base import Slide
from mclst.sections.section import Spots


@dataclass(frozen=True)
class Outputs:
    """Where a run writes: the map, and what belongs beside it (None: not written); files: by kind, see Files."""

    map: Path
    sheet: Path | None = None
    dense: Path | None = None
    report: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def beside(cls, out: Path, *, picture: bool, dense: bool, report: bool, files: Files) -> Outputs:
        """Name what belongs beside the map `out` after it."""
        if not out.name:
            raise OutputError(f"{str(out)!r} names no file to write; choose another --out")
        return cls(
            out,
            out.with_suffix(".genes.png") if picture else None,
            out.with_suffix(".genes.ome.tif") if dense else None,
            out.with_suffix(".run.json") if report else None,
            files.beside(out),
        )

    @property
    def all(self) -> tuple[Path | None, ...]:
        """Every place that is written to."""
        return (self.map, self.sheet, self.dense, self.report, *self.files.values())

    def check_map(self, slide: Slide, spots: Spots, bundle: Path, *, overwrite: bool) -> None:
        """Raise OutputError where the map is in the way, or any output is an input, which even `overwrite` spares."""
        check_writable(self.map, overwrite=overwrite)
        check_apart(self.all, (slide.path, spots.path, bundle))

    def check_beside(self, *, overwrite: bool) -> None:
        """Raise OutputError where one of the others is in the way; remove what dead runs left half-written of them."""
        for path in filter(None, (self.sheet, self.dense)):
            check_writable(path, overwrite=overwrite)
            remove_stale(path)
        check_places(self.files, overwrite=overwrite)
        if self.report is not None:
            check_report(self.report, overwrite=overwrite)
            remove_stale(self.report)

    @property
    def was_stopped(self) -> bool:
        """Whether a stopped run of this map is there, whose pictures may stand beside it already."""
        return self.map.absolute().with_name(f".{self.map.name}.journal").exists()
