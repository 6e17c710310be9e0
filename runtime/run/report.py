"""What a run did: for its user, for `--json`, and as `NAME.run.json` beside the map."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from mclst.runtime.atomic import check_writable, write_whole

FORMAT = "mclst-run/1"
DONE, STOPPED = "done", "stopped"


@dataclass(frozen=True)
class Run:
    """What a prediction did.

    failed: (spot id, reason) of tiles that could not be read; their rows are NaN. carried_on: spots taken over from a
    stopped run. skipped: places of a grid left out as background. structured: genes drawn, most spatially structured
    first, with Moran's I. files: what else stands beside the map, by kind. seconds: wall time by stage; `read` is the busy
    time of opening the slide and of the reading threads, which run beside the others, `file` of it the reading of the
    file's bytes (absent where a library does not tell), `stream` all from the first tile to the last expression.
    """

    map_path: Path
    picture_path: Path | None
    spots: int
    genes: int
    failed: tuple[tuple[str, str], ...]
    provider: str
    retriever: str
    notes: tuple[str, ...]
    coordinates: str
    tile: str
    precision: str = "fp32"
    structured: tuple[tuple[str, float], ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    mpp: float | None = None
    mpp_source: str = ""
    carried_on: int = 0
    skipped: int = 0
    dense_path: Path | None = None
    report_path: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)

    def tiles_per_second(self, stage: str) -> float:
        """Tiles a second, of this run alone, of one stage of `seconds`, or of the whole with "total"."""
        tiles = max(0, self.spots - len(self.failed) - self.carried_on)
        return tiles / max(self.seconds[stage], 1e-9)

    def _repr_html_(self) -> str:
        from mclst.runtime.html_repr import as_html

        rows = [
            ("map", self.map_path),
            ("spots", self.spots),
            ("without a prediction", len(self.failed) or None),
            ("genes", self.genes),
            ("µm per px", self.mpp),
            ("provider", f"{self.provider}, retrieval {self.retriever}"),
            ("seconds", self.seconds.get("total")),
            (
                "most structured",
                ", ".join(gene for gene, value in self.structured if isfinite(value)) or None,
            ),
            *self.files.items(),
            ("notes", "; ".join(self.notes) or None),
        ]
        return as_html("Run", rows, self.picture_path)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        stages = [stage for stage in ("read", "encode", "retrieve", "total") if stage in self.seconds]
        return {
            "map": str(self.map_path),
            "picture": None if self.picture_path is None else str(self.picture_path),
            "dense": None if self.dense_path is None else str(self.dense_path),
            "report": None if self.report_path is None else str(self.report_path),
            "files": {kind: str(path) for kind, path in self.files.items()},
            "spots": self.spots,
            "carried_on": self.carried_on,
            "skipped_background": self.skipped,
            "genes": self.genes,
            "failed": [{"spot": spot, "reason": reason} for spot, reason in self.failed],
            "provider": self.provider,
            "precision": self.precision,
            "retriever": self.retriever,
            "coordinates": self.coordinates,
            "tile": self.tile,
            "mpp": self.mpp,
            "mpp_source": self.mpp_source,
            "notes": list(self.notes),
            "structured_genes": [
                {"gene": gene, "morans_i": value if isfinite(value) else None}
                for gene, value in self.structured
            ],
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
            "tiles_per_second": {stage: round(self.tiles_per_second(stage), 2) for stage in stages},
        }


def write_report(path: Path, status: str, content: Mapping[str, Any], *, reason: str = "") -> None:
    """Write a run's report, whole: `status` is DONE, or STOPPED with the reason. Raises OutputError."""
    head: dict[str, Any] = {"format": FORMAT, "status": status}
    if reason:
        head["reason"] = reason
    text = json.dumps({**head, **content}, indent=2, allow_nan=False, default=str) + "\n"
    write_whole(path, text.encode())


def check_report(path: Path, *, overwrite: bool) -> None:
    """Refuse the place of a report as `check_writable` does, but for the report of a run that was stopped."""
    check_writable(path, overwrite=overwrite or _is_of_a_stopped_run(path))


def _is_of_a_stopped_run(path: Path) -> bool:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and (found.get("format"), found.get("status")) == (FORMAT, STOPPED)
