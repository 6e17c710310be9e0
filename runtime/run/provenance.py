"""What a map is made from: recorded in the map and the report, and compared before a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from mclst.runtime.bundle.location import cached_snapshot
from mclst.runtime.bundle.titles import model_title
from mclst.runtime.run.context import RunContext, radius_px
from mclst.runtime.run.hashes import spots_sha256
from mclst.runtime.slide.base import Slide
from mclst.runtime.versions import installed_versions

BUNDLE, PROVIDER, PRECISION = "the bundle", "the provider", "the precision"
BATCH, LANES = "the batch size", "the lanes"


def run_fingerprint(run: RunContext, slide_sha256: str) -> dict[str, str]:
    """Return all that decides a row's values, by the names users know.

    The journal of a stopped run holds these keys and values, so they must not change.
    """
    settings = {name: str(value) for name, value in run.readout.settings.items()}
    if run.options.reliable is not None:
        settings["--reliable"] = str(run.options.reliable)
    if run.neighborhood is not None:
        settings["the neighborhood"] = f"{radius_px(run.model, run.inputs):.6g} px"
    if run.choice.lanes is not None:
        settings[LANES] = str(run.choice.lanes)
    versions = {f"version of {name}": value for name, value in installed_versions().items()}
    return {
        "the slide": slide_sha256,
        BUNDLE: run.model.sha256,
        "the table of spots": spots_sha256(run.inputs.spots),
        "the slide's reader": run.inputs.slide.reader,
        **settings,
        "the tiles": str(run.tiles.plan),
        BATCH: str(run.tiles.batch_size),
        PROVIDER: f"{run.session.provider}, {run.session.engine}",
        PRECISION: run.options.precision,
        "the retrieval": run.readout.provider,
        **versions,
    }


@dataclass(frozen=True)
class BundleRecord:
    """The bundle.

    title: its system or head, and its encoder, for people. origin: its address and commit at the Hugging Face
    hub, None if it is not from there.
    """

    sha256: str
    title: str
    system: str
    kind: str
    encoder: str
    checkpoint_sha256: str
    bank_spots: int
    normalization_expression: str
    tile_px: int
    tile_mpp: float | None
    origin: str | None


@dataclass(frozen=True)
class SlideRecord:
    """The slide; sha256: None until it has been read whole.

    Of a slide that is elsewhere instead: address, without secrets; version, as its server says; bytes_read,
    read_sha256 of what this run read of it.
    """

    name: str
    width_px: int
    height_px: int
    mpp: float | None
    mpp_source: str
    reader: str
    vendor: str
    icc_profile: str
    sha256: str | None = None
    address: str | None = None
    version: str | None = None
    bytes_read: int | None = None
    read_sha256: str | None = None


@dataclass(frozen=True)
class SpotsRecord:
    """The table of spots."""

    name: str
    variant: str
    coordinates: str


@dataclass(frozen=True)
class Provenance:
    """What a map records about its origin; settings: what decides its values; server, choice: None without
    one.
    """

    bundle: BundleRecord
    slide: SlideRecord
    spots: SpotsRecord
    settings: Mapping[str, Any]
    provider: str
    engine: str
    retriever: str
    versions: Mapping[str, str]
    server: Mapping[str, Any] | None
    choice: Mapping[str, Any] | None

    @classmethod
    def of(cls, run: RunContext, slide_sha256: str | None = None) -> Self:
        """Describe a run; build it once its counts are final."""
        m, slide, spots, tiles = run.model.manifest, run.inputs.slide, run.inputs.spots, run.tiles
        settings = {
            **run.readout.settings,
            "tile": str(tiles.plan),
            "pad": list(m.tile.pad),
            "batch_size": tiles.batch_size,
            "precision": run.options.precision,
            "max_bad_tiles": run.options.max_bad_tiles,
        }
        if run.choice.lanes is not None:
            settings["lanes"] = run.choice.lanes
        if m.neighborhood is not None:
            settings["neighborhood_um"] = m.neighborhood.radius_um
        if run.inputs.grid is not None:
            settings["grid_um"] = run.inputs.grid.stride_um
        return cls(
            bundle=BundleRecord(
                sha256=run.model.sha256,
                title=model_title(m),
                system=m.system,
                kind=m.kind,
                encoder=m.encoder.name,
                checkpoint_sha256=m.checkpoint.sha256,
                bank_spots=m.bank_rows,
                normalization_expression=m.normalization.expression,
                tile_px=m.tile.size_px,
                tile_mpp=m.tile.mpp,
                origin=_origin(run),
            ),
            slide=SlideRecord(
                name=slide.path.name,
                width_px=slide.width_px,
                height_px=slide.height_px,
                mpp=run.inputs.resolution.mpp,
                mpp_source=run.inputs.resolution.source,
                reader=slide.reader,
                vendor=slide.vendor,
                icc_profile=f"{slide.icc}, not applied" if slide.icc else "none",
                sha256=slide_sha256,
                **_elsewhere(slide),
            ),
            spots=SpotsRecord(name=spots.path.name, variant=spots.variant, coordinates=spots.coordinates),
            settings=settings,
            provider=run.session.provider,
            engine=run.session.engine,
            retriever=run.readout.provider,
            versions=installed_versions(),
            server=run.model.server_record(),
            choice=run.choice.as_dict() if run.choice.timings else None,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for `uns["mclst"]` and the report."""
        content = asdict(self)
        for name in ("sha256", "address", "version", "bytes_read", "read_sha256"):
            if content["slide"][name] is None:
                del content["slide"][name]
        for name in ("server", "choice"):
            if content[name] is None:
                del content[name]
        if self.bundle.origin is None:
            del content["bundle"]["origin"]
        return content


def _elsewhere(slide: Slide) -> dict[str, Any]:
    if slide.remote is None:
        return {}
    return {
        "address": str(slide.path),
        "version": slide.remote.describe(),
        "bytes_read": slide.remote.bytes_read,
        "read_sha256": slide.remote.digest(),
    }


def _origin(run: RunContext) -> str | None:
    snapshot = None if run.model.folder is None else cached_snapshot(run.model.folder)
    return None if snapshot is None else str(snapshot)
