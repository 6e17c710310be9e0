"""One slide's work in plain values: sent to a worker, run there, and known again once it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.errors import InputError, SlideError
from mclst.runtime.expression_map.journal import describe_difference
from mclst.runtime.hashing import file_sha256, stamp
from mclst.runtime.inference.loaded_model import ModelCache
from mclst.runtime.progress import Advance, Tell
from mclst.runtime.report.files import Files
from mclst.runtime.run.hashes import SlideHash
from mclst.runtime.run.options import MAX_BAD_TILES
from mclst.runtime.run.outputs import Outputs
from mclst.runtime.run.predict import predict
from mclst.runtime.run.report import DONE, Run
from mclst.runtime.slide.base import Slide
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.grid import Grid, make_grid
from mclst.runtime.tiling.tissue import find_tissue, read_mask
from mclst.sections.section import Spots
from mclst.sections.tables.spots import read_spots

Watch = Callable[[int], AbstractContextManager[Advance]]


def unwatched(count: int) -> AbstractContextManager[Advance]:
    """Nobody watches the tiles."""
    return nullcontext(lambda n: None)


SLIDE = "the slide"
SHAPES_NO_VALUE = ("build", "workers", "overwrite", "resume", "picture", "report", "files", "share")
"""Settings of `predict` under which a finished map stays what it is."""


@dataclass(frozen=True)
class Job:
    """What to predict, and where to.

    out: the map; None: named after the slide, in the working folder. spots: a table; or grid: a dense one over tissue,
    or over `mask`, its places so many µm apart. reader, mpp, genes, max_bad_tiles: see `open_slide` and `predict`. retrieval: fields of
    RetrievalSpec in place of the bundle's.
    """

    slide: Path
    out: Path | None = None
    spots: Path | None = None
    grid: float | None = None
    mask: Path | None = None
    reader: str = "auto"
    mpp: float | None = None
    all_spots: bool = False
    genes: tuple[str, ...] = ()
    max_bad_tiles: str = MAX_BAD_TILES
    retrieval: Mapping[str, Any] = field(default_factory=dict)

    @property
    def map_path(self) -> Path:
        """Where the map goes."""
        return Path(f"{self.slide.stem}.h5ad") if self.out is None else self.out

    def outputs(self, *, picture: bool, report: bool, files: Files) -> Outputs:
        """Every place that is written to."""
        return Outputs.beside(
            self.map_path, picture=picture, dense=bool(self.genes), report=report, files=files
        )


def retrieval_spec(bundle: Bundle, given: Mapping[str, Any]) -> RetrievalSpec | None:
    """The bundle's retrieval with what is `given` in place; None where it has none. ValueError where they do not fit."""
    if bundle.manifest.kind != "retrieval" and not given:
        return None
    return replace(bundle.retrieval, **given)


def resolve_spots(job: Job, slide: Slide, table: Spots | None = None) -> Spots | Grid:
    """The spots of a job, or its grid over the slide; table: its spots, where they are read already."""
    if job.spots is not None:
        return table or read_spots(job.spots, all_spots=job.all_spots)
    mpp = slide.mpp if job.mpp is None else job.mpp
    if mpp is None:
        raise SlideError(
            f"{slide.path} does not say how large its pixels are ({slide.mpp_source}), and --grid is in µm; "
            "give --mpp, the µm per pixel of the slide"
        )
    tissue = find_tissue(slide, mpp) if job.mask is None else read_mask(job.mask, slide)
    return make_grid(slide, job.grid or 0.0, mpp, tissue)


def run_job(
    bundle: Bundle,
    job: Job,
    settings: Mapping[str, Any],
    *,
    opened: ModelCache | None = None,
    record: Mapping[str, Any] | None = None,
    watch: Watch = unwatched,
    tell: Tell = lambda text: None,
) -> Run:
    """Predict one slide; settings: arguments of `predict` that are not the job's own. Raises what `predict` raises.

    watch: given the number of tiles, a context that gives what to tell of them.
    """
    table = None if job.spots is None else read_spots(job.spots, all_spots=job.all_spots)
    with open_slide(job.slide, reader=job.reader) as slide:
        places = resolve_spots(job, slide, table)
        with watch(len(places.spots if isinstance(places, Grid) else places)) as advance:
            return predict(
                bundle,
                slide,
                places,
                job.out,
                retrieval=retrieval_spec(bundle, job.retrieval),
                slide_mpp=job.mpp,
                genes=job.genes,
                max_bad_tiles=job.max_bad_tiles,
                opened=opened,
                record=record,
                advance=advance,
                tell=tell,
                **settings,
            )


def identity(bundle: Bundle, job: Job, settings: Mapping[str, Any]) -> dict[str, str]:
    """What decides a slide's map, by the names a user knows; the slide and its mask by size and time of change.

    Raises InputError where an input cannot be read.
    """
    for path in filter(None, (job.slide, job.spots, job.mask)):
        if not path.exists():
            raise InputError(f"{path} does not exist; correct the cohort's table")
    kept = {name: value for name, value in settings.items() if name not in SHAPES_NO_VALUE}
    own = {
        name: value for name, value in asdict(job).items() if name not in ("out", "slide", "spots", "mask")
    }
    spots = "" if job.spots is None or job.spots.is_dir() else file_sha256(job.spots)
    return {
        "the bundle": bundle.sha256,
        SLIDE: _seen(job.slide),
        "the table of spots": spots or _seen(job.spots),
        "the tissue mask": _seen(job.mask),
        **{
            f"--{name.replace('_', '-')}": json.dumps(value, default=str)
            for name, value in (own | kept).items()
        },
    }


def _seen(path: Path | None) -> str:
    found = None if path is None else stamp(path)
    # Where a file lies says nothing of what it is: another node may mount it under another number.
    return "none" if found is None else f"{found[2]} bytes of {found[3]}"


def finished(job: Job, outputs: Outputs, now: Mapping[str, str]) -> tuple[dict[str, Any] | None, str]:
    """What the report of a finished map says, where it is that of `now`, its `identity`; else None and why it is not.

    "" where there is no map. A slide of another time is hashed before it counts as another.
    """
    if not outputs.map.is_file() or outputs.report is None:
        return None, ""
    try:
        report = json.loads(outputs.report.read_bytes())
        same = report["status"] == DONE and report["map_bytes"] == outputs.map.stat().st_size
        before = report["record"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None, f"{outputs.report} is no report of it"
    if not same or not isinstance(before, dict):
        return None, f"{outputs.report} is no report of it"
    changed = describe_difference(before, now)
    but_for_time = {**before, SLIDE: now[SLIDE]} == now
    if changed and but_for_time and _sha256(job.slide) == report["slide"]["sha256"]:
        changed = ""
    if changed:
        return None, f"it was made from another: {changed}"
    missing = [path.name for path in outputs.all if path is not None and not path.exists()]
    if missing:
        return None, f"{', '.join(missing)} is missing beside it (mclst-report makes such files from a map)"
    return report, ""


def is_finished(bundle: Bundle, job: Job, settings: Mapping[str, Any]) -> bool:
    """Whether the map of a job stands, made of the same; see `finished`."""
    files = (settings.get("files") or Files()).ready()[0]
    outputs = job.outputs(picture=settings["picture"], report=True, files=files)
    return finished(job, outputs, identity(bundle, job, settings))[0] is not None


def _sha256(slide: Path) -> str:
    with SlideHash(slide) as hashing:
        return hashing.result()
