"""One slide's work as plain values: sent to a worker, run there, and recognized once it is done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mclst.runtime.atomic import check_distinct
from mclst.runtime.background import Background
from mclst.runtime.errors import InputError, MclstError, SlideError
from mclst.runtime.expression_map.journal import describe_difference
from mclst.runtime.hashing import file_sha256
from mclst.runtime.progress import Advance, Notify
from mclst.runtime.report.files import Files
from mclst.runtime.run.hashes import SlideHash
from mclst.runtime.run.options import RunOptions
from mclst.runtime.run.outputs import Outputs
from mclst.runtime.run.report import DONE
from mclst.runtime.slide.open import open_slide
from mclst.runtime.storage.digest import slide_stamp
from mclst.sections.errors import UnknownScale
from mclst.sections.location import RemoteLocation, SlideLocation, local_path

if TYPE_CHECKING:
    from mclst.runtime.expression_map.parts import SlidePart
    from mclst.runtime.inference.model import Model
    from mclst.runtime.run.report import Run
    from mclst.runtime.slide.base import Slide
    from mclst.runtime.tiling.grid import Grid
    from mclst.runtime.tiling.tiles import TileShape
    from mclst.sections.section import Spots

PICTURES, PATCHES_SUFFIX = ("tissue_hires_image.png", "tissue_lowres_image.png"), ".h5"
"""Space Ranger's pictures and HEST's patches: positions become those of the picture."""
Watch = Callable[[int], AbstractContextManager[Advance]]
"""Number of tiles → a context that yields `advance`."""

SLIDE = "the slide"


def unwatched(count: int) -> AbstractContextManager[Advance]:
    """Watch nothing."""
    return nullcontext(lambda n: None)


@dataclass(frozen=True)
class Job:
    """What to predict, and how.

    out: the map; None: named after the slide, in the working folder. spots: a table; or grid: the stride in
    µm of a dense one over tissue, or over `mask`. all_spots: include spots not in tissue. region: GeoJSON
    polygons, outside of which nothing is predicted. bins: of a measured section given as `spots`.
    """

    slide: SlideLocation
    out: Path | None = None
    spots: Path | None = None
    grid: float | None = None
    mask: Path | None = None
    reader: str = "auto"
    all_spots: bool = False
    region: Path | None = None
    options: RunOptions = field(default_factory=RunOptions)
    bins: str | None = None

    @property
    def map_path(self) -> Path:
        """The map to write."""
        return Path(f"{self.slide.stem}.h5ad") if self.out is None else self.out

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every path of this machine that is read, but the bundle."""
        return tuple(filter(None, (local_path(self.slide), self.spots, self.mask, self.region)))

    def outputs(self) -> Outputs:
        """Return every path that is written to."""
        return Outputs.of(self.map_path, self.options, (self.options.files or Files()).resolve()[0])


def resolve_spots(job: Job, slide: Slide, table: Spots | None = None) -> Spots | Grid:
    """Return a job's spots, or its grid over the slide; table: the spots if they are already read.

    Raises SlideError if µm are needed and the slide's scale is unknown, SpotsError if no spot is in the
    region.
    """
    from mclst.runtime.tiling.grid import make_grid
    from mclst.runtime.tiling.region import restrict_grid, restrict_spots
    from mclst.runtime.tiling.tissue import find_tissue, read_mask

    mpp = slide.mpp if job.options.mpp is None else job.options.mpp
    if job.spots is not None:
        spots = table or _read_spots(job, job.spots, slide.mpp_xy if job.options.mpp is None else mpp)
        return spots if job.region is None else restrict_spots(spots, job.region)
    if mpp is None:
        raise SlideError(
            f"{slide.path} does not say how large its pixels are ({slide.mpp_source}), and --grid is in µm; "
            "give --mpp, the µm per pixel of the slide"
        )
    tissue = find_tissue(slide, mpp) if job.mask is None else read_mask(job.mask, slide)
    grid = make_grid(slide, job.grid or 0.0, mpp, tissue)
    return grid if job.region is None else restrict_grid(grid, job.region)


def read_table(job: Job) -> Spots | None:
    """Return a job's spots; None for a grid, and where the slide must say its scale first."""
    if job.spots is None:
        return None
    with suppress(UnknownScale):
        return _read_spots(job, job.spots, job.options.mpp)
    return None


def _read_spots(job: Job, path: Path, mpp: float | tuple[float, float] | None) -> Spots:
    """A table of spots, or the spots of a measured section."""
    from mclst.sections.tables.spots import read_spots

    picture = local_path(job.slide)
    is_picture = picture is not None and (picture.name in PICTURES or picture.suffix == PATCHES_SUFFIX)
    is_folder = os.path.isdir(path)
    if not is_folder and not is_picture:
        return read_spots(path, all_spots=job.all_spots, mpp=mpp)
    # Only here, for what reads sections loads scipy, which most runs need after their first tile.
    from mclst.sections.formats.section_spots import on_picture, section_spots

    spots = section_spots(path, job.slide, job.bins) if is_folder else None
    if spots is not None:
        return spots
    table = read_spots(path, all_spots=job.all_spots, mpp=mpp)
    return table if picture is None else on_picture(table, picture)


class Opening(NamedTuple):
    """What begins once a command's arguments are known.

    table: see `read_table`. slide: decoded, if it is a picture and it is known what will be read of it.
    """

    table: Background[Spots | None]
    slide: Background[Slide]


def begin_opening(job: Job, bundle: Path | None) -> Opening | None:
    """Begin to open a job's slide and table; None for a slide that is elsewhere.

    bundle: its manifest, not verified yet, says which tiles will be read of a picture. Without it, and for a
    grid over the tissue in it, a picture is decoded whole.
    """
    if local_path(job.slide) is None:
        return None
    table = Background(partial(read_table, job), "spots")
    if bundle is None or job.spots is None:
        return Opening(table, Background(partial(open_slide, job.slide, reader=job.reader), "slide"))

    def open_it() -> Slide:
        from mclst.runtime.tiling.tiles import TileShape

        slide = open_slide(job.slide, reader=job.reader, lazy=True)
        if not slide.is_pending:
            return slide
        with suppress(Exception):  # said where it is needed
            # Of the whole manifest, checks take longer to load than the picture to decode.
            tile = json.loads((bundle / "manifest.json").read_bytes())["tile"]
            shape = TileShape(tile["size_px"], tile["mpp"], tuple(tile["pad"]))
            _announce(slide, resolve_spots(job, slide, table.result()), shape, job.options)
        try:
            slide.decode()
        except BaseException:
            slide.close()
            raise
        return slide

    return Opening(table, Background(open_it, "slide"))


def _announce(slide: Slide, spots: Spots | Grid, shape: TileShape, options: RunOptions) -> None:
    """Announce what a run reads of a picture: tiles, places that tell its stain, and its overview.

    Nothing where something is wrong, which the run says.
    """
    from mclst.runtime.tiling.array_pitch import slide_resolution
    from mclst.runtime.tiling.bounds import check_spots
    from mclst.runtime.tiling.grid import Grid
    from mclst.runtime.tiling.tiles import plan_tiles, tile_corners
    from mclst.runtime.trust.places import expect_places

    table = spots.spots if isinstance(spots, Grid) else spots
    try:
        check_spots(table, slide)
        mpp = slide_resolution(slide, table, options.mpp).mpp
        plan = plan_tiles(slide, shape, mpp)
        pictures = (options.files or Files()).resolve()[0]
    except MclstError:
        return
    slide.expect(tile_corners(slide, table.xy_px, plan), plan.read_px, plan.level)
    expect_places(slide, table.xy_px)
    slide.expect_overview(pictures.picture_px)


def run_job(
    model: Model,
    job: Job,
    *,
    watch: Watch = unwatched,
    notify: Notify = lambda text: None,
    identity: Mapping[str, str] | None = None,
    shard: SlidePart | None = None,
    opening: Opening | None = None,
) -> Run:
    """Predict one slide; see `predict`. opening: of this job, if it has begun.

    Raises OutputError also if an output would replace an input, even with `overwrite`.
    """
    # A map may be kept in the folder of the section that names its spots.
    check_distinct(job.outputs().all, job.inputs, inside=False)
    _begin_early(model, job)
    from mclst.runtime.run.predict import predict  # takes a while, and loads beside what has begun
    from mclst.runtime.tiling.bounds import border_note
    from mclst.runtime.tiling.grid import Grid
    from mclst.runtime.tiling.tiles import TileShape

    table = read_table(job) if opening is None else opening.table.result()
    with (
        open_slide(job.slide, reader=job.reader, lazy=True) if opening is None else opening.slide.result()
    ) as slide:
        spots = resolve_spots(job, slide, table)
        if slide.is_pending:
            tile = model.manifest.tile
            _announce(slide, spots, TileShape(tile.size_px, tile.mpp, tile.pad), job.options)
            slide.decode()
        if border := border_note(slide, None if isinstance(spots, Grid) else spots, job.region):
            notify(border)
        with watch(len(spots.spots if isinstance(spots, Grid) else spots)) as advance:
            return predict(
                model,
                slide,
                spots,
                job.out,
                job.options,
                advance=advance,
                notify=notify,
                identity=identity,
                shard=shard,
            )


def _begin_early(model: Model, job: Job) -> None:
    """Begin what a run waits for later, while the slide opens; a stopped run may have chosen otherwise."""
    options = job.options.for_model(model)
    stopped = options.resume and job.outputs().was_stopped
    path = local_path(job.slide)
    if (path is None or os.path.exists(path)) and options.memory_budget is None and not stopped:
        model.prepare(
            options.provider,
            options.precision,
            options.batch_size,
            retriever=options.retriever,
            retrieval=options.retrieval,
        )


def identity(model: Model, job: Job) -> dict[str, str]:
    """Return what decides a slide's map, by the names users know.

    Slide and mask count by size and modification time, a slide elsewhere by what its server says.
    Reports of finished maps hold these keys and values, so they must not change.
    Raises InputError if an input cannot be read.
    """
    for path in job.inputs:
        # Not Path.exists, which raises where the name is too long or a folder is closed.
        if not os.path.exists(path):
            raise InputError(
                f"{path} does not exist, or its folder is closed to you; correct the cohort's table"
            )
    try:
        return _identity(model, job)
    except OSError as error:
        raise InputError(
            f"{error.filename or job.slide} cannot be read ({error.strerror}); correct the cohort's table"
        ) from error


def _identity(model: Model, job: Job) -> dict[str, str]:
    options = {
        "grid": job.grid,
        "reader": job.reader,
        "all_spots": job.all_spots,
        **job.options.for_model(model).of_map(),
    }
    spots = "" if job.spots is None or job.spots.is_dir() else file_sha256(job.spots)
    return {
        "the bundle": model.sha256,
        SLIDE: _describe_file(job.slide),
        "the table of spots": spots or _describe_file(job.spots),
        "the tissue mask": _describe_file(job.mask),
        **({} if job.region is None else {"the region": file_sha256(job.region)}),
        **({} if job.bins is None else {"--bin": job.bins}),
        **{f"--{name.replace('_', '-')}": json.dumps(value, default=str) for name, value in options.items()},
    }


def _describe_file(path: SlideLocation | None) -> str:
    if isinstance(path, RemoteLocation):
        with open_slide(path) as slide:
            assert slide.remote is not None, "its location is remote"
            return f"{path}, {slide.remote.describe()}"
    seen = None if path is None else slide_stamp(path)
    # Device and inode do not count: another node may mount the same file under other numbers.
    return "none" if seen is None else f"{seen[2]} bytes of {seen[3]}"


def finished(job: Job, outputs: Outputs, now: Mapping[str, str]) -> tuple[dict[str, Any] | None, str]:
    """Return a finished map's report if its identity is `now`; else None and the reason, "" without a map.

    A slide of this machine with another modification time is hashed before it counts as changed.
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
    path = local_path(job.slide)
    if changed and but_for_time and path is not None and _sha256(path) == report["slide"].get("sha256"):
        changed = ""
    if changed:
        return None, f"it was made from another: {changed}"
    missing = [path.name for path in outputs.all if path is not None and not path.exists()]
    if missing:
        return None, f"{', '.join(missing)} is missing (mclst-report makes such files from a map)"
    return report, ""


def _sha256(slide: Path) -> str:
    with SlideHash(slide) as slide_hash:
        return slide_hash.result()
