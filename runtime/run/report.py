"""Summary of a run: for its user, for `--json`, and as `NAME.run.json` next to the map."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mclst.runtime.atomic import check_writable, write_atomically

if TYPE_CHECKING:
    from mclst.runtime.providers.choice import EncoderChoice

FORMAT = "mclst-run/1"
DONE, STOPPED = "done", "stopped"


@dataclass(frozen=True)
class Run:
    """Summary of a finished run.

    Parameters
    ----------
    map_path, picture_path, dense_path, report_path : Path or None
        The files written; None if not.
    spots, genes : int
        Size of the map.
    failed : tuple of (str, str)
        Spot id and reason of each unreadable tile, whose row is NaN.
    provider, precision, retriever : str
        What ran the encoder and the retrieval.
    choice : EncoderChoice or None
        Why, where it was measured.
    notes : tuple of str
        What the user was told.
    coordinates, tile : str
        The spots' coordinates and how tiles were cut.
    structured : tuple of (str, float)
        Genes drawn, the most spatially structured first, with Moran's I.
    seconds : dict
        Wall time by stage. `read` is the busy time of opening the slide and of the reading threads, `file`
        its share spent on the file's bytes (if the library reports it), `stream` the time from the first tile
        to the last row.
    mpp, mpp_source : float or None, str
        µm/px of level 0 and where it is from.
    resumed : int
        Spots taken over from a stopped run.
    reused : int
        Spots whose embedding an earlier run left in the cache.
    stream_ended : float
        When the last row was there, by `time.perf_counter`.
    skipped : int
        Grid positions left out as background.
    files : mapping
        Path of each further file, by kind.
    verdict : str
        What is known of the map's error, in one line.
    outside_share : float or None
        Share of the spots that are unlike what the model was calibrated on; None if it was not.
    reliable_genes : int or None
        Genes called reliable; None if not calibrated.
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
    choice: EncoderChoice | None = None
    structured: tuple[tuple[str, float], ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    mpp: float | None = None
    mpp_source: str = ""
    resumed: int = 0
    reused: int = 0
    stream_ended: float = 0.0
    skipped: int = 0
    dense_path: Path | None = None
    report_path: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    verdict: str = ""
    outside_share: float | None = None
    reliable_genes: int | None = None

    def tiles_per_second(self, stage: str) -> float:
        """Return the tiles/s of a stage of `seconds`, without those that it did not see."""
        tiles = max(0, self.spots - len(self.failed) - self.resumed)
        if stage in ("read", "encode") and self.reused:
            tiles = 0
        return tiles / max(self.seconds[stage], 1e-9)

    def _repr_html_(self) -> str:
        from mclst.runtime.html_repr import html_table

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
            ("trust", self.verdict or None),
            *self.files.items(),
            ("notes", "; ".join(self.notes) or None),
        ]
        return html_table("Run", rows, self.picture_path)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, for `--json`."""
        stages = [stage for stage in ("read", "encode", "retrieve", "total") if stage in self.seconds]
        return {
            "map": str(self.map_path),
            "picture": None if self.picture_path is None else str(self.picture_path),
            "dense": None if self.dense_path is None else str(self.dense_path),
            "report": None if self.report_path is None else str(self.report_path),
            "files": {kind: str(path) for kind, path in self.files.items()},
            "spots": self.spots,
            "carried_on": self.resumed,
            "reused": self.reused,
            "skipped_background": self.skipped,
            "genes": self.genes,
            "failed": [{"spot": spot, "reason": reason} for spot, reason in self.failed],
            "provider": self.provider,
            "precision": self.precision,
            "times_fp32": None
            if self.choice is None or self.choice.times_fp32 is None
            else round(self.choice.times_fp32, 3),
            "retriever": self.retriever,
            "coordinates": self.coordinates,
            "tile": self.tile,
            "mpp": self.mpp,
            "mpp_source": self.mpp_source,
            "notes": list(self.notes),
            "verdict": self.verdict,
            "outside_share": self.outside_share,
            "reliable_genes": self.reliable_genes,
            "structured_genes": [
                {"gene": gene, "morans_i": value if isfinite(value) else None}
                for gene, value in self.structured
            ],
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
            "tiles_per_second": {stage: round(self.tiles_per_second(stage), 2) for stage in stages},
        }


def write_report(path: Path, status: str, content: Mapping[str, Any], *, reason: str = "") -> None:
    """Write a run's report atomically; status: DONE, or STOPPED with a reason. Raises OutputError."""
    head: dict[str, Any] = {"format": FORMAT, "status": status}
    if reason:
        head["reason"] = reason
    text = json.dumps({**head, **content}, indent=2, allow_nan=False, default=str) + "\n"
    write_atomically(path, text.encode())


def check_report(path: Path, *, overwrite: bool) -> None:
    """Check a report's path as `check_writable` does, but allow replacing the report of a stopped run."""
    check_writable(path, overwrite=overwrite or _is_of_stopped_run(path))


def _is_of_stopped_run(path: Path) -> bool:
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(report, dict) and (report.get("format"), report.get("status")) == (FORMAT, STOPPED)
