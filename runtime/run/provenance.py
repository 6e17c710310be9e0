"""What a map comes from: told in the map and the report, and what decides whether two runs are the same run."""

from __future__ import annotations

from typing import Any

from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.encoder.session import Session
from mclst.runtime.inference.readout import Readout
from mclst.runtime.run.hashes import spots_sha256
from mclst.runtime.slide.base import Slide
from mclst.runtime.tiling.array_pitch import Resolution
from mclst.runtime.tiling.tiles import Tiles
from mclst.runtime.versions import installed_versions
from mclst.sections.section import Spots

BUNDLE = "the bundle"


def run_fingerprint(
    bundle: Bundle,
    spots: Spots,
    tiles: Tiles,
    session: Session,
    precision: str,
    readout: Readout,
    slide_sha256: str,
) -> dict[str, str]:
    """All that decides a row's values, by the names a user knows."""
    settings = {name: str(value) for name, value in readout.settings.items()}
    versions = {f"version of {name}": value for name, value in installed_versions().items()}
    return {
        "the slide": slide_sha256,
        BUNDLE: bundle.sha256,
        "the table of spots": spots_sha256(spots),
        "the slide's reader": tiles.slide.reader,
        **settings,
        "the tiles": tiles.choice,
        "the batch size": str(tiles.batch_size),
        "the provider": f"{session.provider}, {session.engine}",
        "the precision": precision,
        "the retrieval": readout.provider,
        **versions,
    }


def told(
    bundle: Bundle,
    slide: Slide,
    spots: Spots,
    resolution: Resolution,
    tiles: Tiles,
    session: Session,
    readout: Readout,
) -> dict[str, Any]:
    """What made the map, for `uns["mclst"]` and the report."""
    m = bundle.manifest
    return {
        "bundle": {
            "sha256": bundle.sha256,
            "system": m.system,
            "kind": m.kind,
            "encoder": m.encoder.name,
            "checkpoint_sha256": m.checkpoint.sha256,
            "bank_spots": m.bank_rows,
            "normalisation_expression": m.normalisation.expression,
            "tile_px": m.tile.size_px,
            "tile_mpp": m.tile.mpp,
        },
        "slide": {
            "name": slide.path.name,
            "width_px": slide.width_px,
            "height_px": slide.height_px,
            "mpp": resolution.mpp,
            "mpp_source": resolution.source,
            "reader": slide.reader,
            "vendor": slide.vendor,
            "icc_profile": f"{slide.icc}, not applied" if slide.icc else "none",
        },
        "spots": {"name": spots.path.name, "variant": spots.variant, "coordinates": spots.coordinates},
        "settings": {
            **readout.settings,
            "tile": tiles.choice,
            "pad": list(m.tile.pad),
            "batch_size": tiles.batch_size,
        },
        "provider": session.provider,
        "engine": session.engine,
        "retriever": readout.provider,
        "versions": installed_versions(),
    }
