"""Bundle + slide + spots → expression map: tiles are read, encoded, retrieved and written as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels import ProviderError, RetrievalSpec, Retriever
from mclst.runtime.bundle import Bundle, file_sha256
from mclst.runtime.errors import BundleError, InputError, OutputError, ResourceError, SlideError
from mclst.runtime.expression import MapWriter
from mclst.runtime.pictures import contact_sheet
from mclst.runtime.placing import check_places
from mclst.runtime.publish import check_writable
from mclst.runtime.session import Session, open_session
from mclst.runtime.slide import Slide
from mclst.runtime.tiles import Tiles, TileShape
from mclst.sections.section import Spots
from mclst.sections.spots import read_spots

RETRIEVE_ROWS = 512
"""Embeddings gathered before a retrieval: enough to fill a matrix product, 0.5 MB at 256 dimensions."""

IMAGE_PX = 2000
"""Longest side of the tissue image in the map, as Space Ranger writes it."""

PACKAGES = (
    "mclst",
    "onnxruntime",
    "onnxruntime-gpu",
    "faiss-cpu",
    "numpy",
    "tifffile",
    "imagecodecs",
    "pillow",
)

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Run:
    """What a prediction did.

    failed: (spot id, reason) of tiles that could not be read; their rows are NaN. structured: genes drawn, most
    spatially structured first, with Moran's I. seconds: wall time by stage; `read` is the busy time of
    opening the slide and of the reading threads, which run beside the others.
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
    structured: tuple[tuple[str, float], ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def tiles_per_second(self, stage: str) -> float:
        """Tiles a second of one stage of `seconds`, or of the whole with "total"."""
        return (self.spots - len(self.failed)) / max(self.seconds[stage], 1e-9)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        stages = ("read", "encode", "retrieve", "total")
        return {
            "map": str(self.map_path),
            "picture": None if self.picture_path is None else str(self.picture_path),
            "spots": self.spots,
            "genes": self.genes,
            "failed": [{"spot": spot, "reason": reason} for spot, reason in self.failed],
            "provider": self.provider,
            "retriever": self.retriever,
            "coordinates": self.coordinates,
            "tile": self.tile,
            "structured_genes": [
                {"gene": gene, "morans_i": value if isfinite(value) else None}
                for gene, value in self.structured
            ],
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
            "tiles_per_second": {stage: round(self.tiles_per_second(stage), 2) for stage in stages},
        }


class _Clock(dict[str, float]):
    """Seconds by stage."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self[name] = self.get(name, 0.0) + time.perf_counter() - start


def predict(
    bundle: Bundle,
    slide: Slide,
    spots: Spots | str | Path,
    out: str | Path | None = None,
    *,
    provider: str = "auto",
    retrieval: RetrievalSpec | None = None,
    batch_size: int = 16,
    workers: int = 2,
    slide_mpp: float | None = None,
    overwrite: bool = False,
    picture: bool = True,
    advance: Advance = lambda n: None,
) -> Run:
    """Predict the expression at each spot and write `out`, by default `<slide's stem>.h5ad` in the working folder.

    spots: a table, or the path of one. retrieval: in place of the bundle's own. batch_size: tiles encoded at once.
    workers: reading threads. slide_mpp: µm/px of level 0, where the slide does not say or is wrong. picture: draw
    `<out's stem>.genes.png` beside the map. advance: called with the number of tiles done.
    Memory does not grow with the number of spots beyond their table.
    Raises InputError, OutputError or ResourceError; nothing is left behind then.
    """
    started = time.perf_counter()
    clock = _Clock()
    spots = spots if isinstance(spots, Spots) else read_spots(Path(spots))
    out = Path(f"{slide.path.stem}.h5ad") if out is None else Path(out)
    sheet = out.with_suffix(".genes.png") if picture else None
    for path in (out, sheet) if sheet else (out,):
        _check_output(path, slide, spots, overwrite=overwrite)
    check_places(spots, slide)
    spec = retrieval or bundle.manifest.retrieval.spec()
    with ThreadPoolExecutor(1, thread_name_prefix="mclst-hash") as hashing:
        slide_sha256 = hashing.submit(file_sha256, slide.path)
        genes = [str(gene) for gene in bundle.bank.genes]
        with MapWriter(out, genes=genes, spots=spots, overwrite=overwrite) as writer:
            with clock.stage("open"):
                session = open_session(bundle.encoder_path, provider)
                retriever = _retriever(bundle, spec)
            tile = bundle.manifest.tile
            shape = TileShape(tile.size_px, tile.mpp, tile.pad)
            tiles = Tiles(
                slide, spots.xy_px, shape, batch_size=batch_size, workers=workers, slide_mpp=slide_mpp
            )
            failed = _stream(tiles, session, retriever, writer, spots, clock, advance)
            clock["read"] = slide.seconds_opening + tiles.seconds_reading
            if len(failed) == len(spots):
                raise SlideError(f"{slide.path}: no tile could be read; the first says: {failed[0][1]}")
            made_by = {
                "bundle": _of_bundle(bundle),
                "slide": _of_slide(slide, slide_sha256.result(), slide_mpp),
                "spots": {
                    "name": spots.path.name,
                    "variant": spots.variant,
                    "coordinates": spots.coordinates,
                },
                "settings": {**asdict(spec), "tile": tiles.choice, "pad": list(tile.pad)},
                "provider": session.provider,
                "retriever": retriever.provider,
                "failed_spots": len(failed),
                "seconds": dict(clock),
                "versions": _versions(),
            }
            with clock.stage("write"):
                _publish(writer, slide, spots, made_by)
    drawn: tuple[tuple[str, float], ...] = ()
    if sheet is not None:
        with clock.stage("draw"):
            drawn = contact_sheet(out, sheet, mpp=slide_mpp or slide.mpp)
    clock["total"] = slide.seconds_opening + time.perf_counter() - started
    return Run(
        map_path=out,
        picture_path=sheet,
        spots=len(spots),
        genes=len(genes),
        failed=tuple(failed),
        provider=session.provider,
        retriever=retriever.provider,
        notes=(session.note,) if session.note else (),
        coordinates=spots.coordinates,
        tile=tiles.choice,
        structured=drawn,
        seconds=dict(clock),
    )


def _check_output(path: Path, slide: Slide, spots: Spots, *, overwrite: bool) -> None:
    """Raise OutputError where `path` is in the way, or is an input, which even `overwrite` spares."""
    check_writable(path, overwrite=overwrite)
    for given in (slide.path, spots.path):
        if path.exists() and given.exists() and path.samefile(given):
            raise OutputError(f"{path} is an input of this run and would be lost; choose another --out")


def _retriever(bundle: Bundle, spec: RetrievalSpec) -> Retriever:
    rows = len(bundle.bank)
    if spec.k > rows:
        raise InputError(
            f"k is {spec.k} and the bank of {bundle.path} has {rows} spots; give --k of at most {rows}"
        )
    try:
        return Retriever(bundle.bank, spec)
    except ProviderError as error:
        raise ResourceError(str(error)) from error
    except ValueError as error:
        raise BundleError(f"{bundle.path / 'bank.h5'}: {error}") from error


def _stream(
    tiles: Tiles,
    session: Session,
    retriever: Retriever,
    writer: MapWriter,
    spots: Spots,
    clock: _Clock,
    advance: Advance,
) -> list[tuple[str, str]]:
    """Encode each batch, retrieve every RETRIEVE_ROWS embeddings, write; returns the spots without a tile."""
    failed: list[tuple[str, str]] = []
    waiting: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []

    def flush() -> None:
        if not waiting:
            return
        rows, embeddings = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
        waiting.clear()
        with clock.stage("retrieve"):
            found = retriever.aggregate(embeddings)
        with clock.stage("write"):
            writer.write(rows, found.expression, found.nearest, found.effective_k)

    for batch in tiles:
        failed += [(str(spots.id[row]), reason) for row, reason in batch.failed]
        if len(batch.rows):
            with clock.stage("encode"):
                embedding = session.encode(batch.tiles)
            bad = np.flatnonzero(~np.isfinite(embedding).all(axis=1))
            if len(bad):
                raise BundleError(
                    f"the encoder gave an embedding that is not finite for spot {spots.id[batch.rows[bad[0]]]}; "
                    "export the bundle again"
                )
            waiting.append((batch.rows, embedding))
        if sum(len(rows) for rows, _ in waiting) >= RETRIEVE_ROWS:
            flush()
        advance(len(batch.rows) + len(batch.failed))
    flush()
    return failed


def _publish(writer: MapWriter, slide: Slide, spots: Spots, made_by: dict[str, Any]) -> None:
    image, scale = slide.thumbnail(IMAGE_PX)
    writer.publish(
        image=image,
        image_scale=scale,
        spot_diameter_px=spots.spot_diameter_px,
        library_id=slide.path.stem,
        run=made_by,
        metadata={"source_image_path": slide.path.name},
    )


def _of_bundle(bundle: Bundle) -> dict[str, Any]:
    m = bundle.manifest
    return {
        "sha256": bundle.sha256,
        "system": m.system,
        "encoder": m.encoder.name,
        "checkpoint_sha256": m.checkpoint.sha256,
        "bank_spots": m.bank_rows,
        "normalisation_expression": m.normalisation.expression,
        "tile_px": m.tile.size_px,
        "tile_mpp": m.tile.mpp,
    }


def _of_slide(slide: Slide, sha256: str, given_mpp: float | None) -> dict[str, Any]:
    return {
        "name": slide.path.name,
        "sha256": sha256,
        "width_px": slide.width_px,
        "height_px": slide.height_px,
        "mpp": slide.mpp if given_mpp is None else given_mpp,
        "mpp_source": slide.mpp_source if given_mpp is None else "given",
        "reader": slide.reader,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
