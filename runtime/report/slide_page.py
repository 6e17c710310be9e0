"""`slide.html`: a map to look at, in one file that any browser opens offline."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mclst.runtime.errors import ResourceError
from mclst.runtime.map_file import Map
from mclst.runtime.pictures import COLOURS
from mclst.runtime.publish import write_whole
from mclst.runtime.report import shell
from mclst.runtime.report.packing import MIDDLE, Codes, Packed, encode, encode_genes, steps_for
from mclst.runtime.report.viewer import PLACE

SCRIPTS = ("tables.js", "packed.js", "painting.js", "picker.js", "pane.js", "report.js")
MAPS = {
    "Magma": COLOURS,
    "Viridis": matplotlib.colormaps["viridis"],
    "Cividis": matplotlib.colormaps["cividis"],
    "Grey": matplotlib.colormaps["gray_r"],
}
"""All of them change in lightness alone in one direction, so that they can be told apart without seeing colours."""
MOST_VALUES = 40_000_000
"""Spots x genes in a page; of a larger map, the most structured genes are taken."""
JPEG_QUALITY = 80
Picture = tuple[NDArray[np.uint8], float]
"""Of the whole slide: uint8 [h, w, 3], px per level-0 px."""
CONFIDENCE = {"nearest_distance": "Nearest distance", "effective_k": "Effective k"}


@dataclass
class Layer:
    """Something that colours spots. genes: whether there is one for each gene, or a single one."""

    name: str
    label: str
    genes: bool
    low: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    limits: list[tuple[float, float]] = field(default_factory=list)

    def take(self, codes: Codes) -> bytes:
        """Remember what the codes of the next gene mean; their bytes."""
        self.low.append(codes.low)
        self.step.append(codes.step)
        self.limits.append(codes.limits)
        return codes.codes.astype(codes.codes.dtype.newbyteorder("<")).tobytes()


def check_viewer() -> None:
    """Raise ResourceError where this installation has no viewer to put into a page."""
    if not PLACE.is_file():
        raise ResourceError(
            "the viewer OpenSeadragon is not in this installation, so no page can be made; with npm at hand, run "
            "python -m mclst.runtime.report.viewer"
        )


def write_slide_page(
    found: Map, out: Path, *, measured: NDArray[np.floating] | None = None, picture: Picture | None = None
) -> Path:
    """Write the page of a map to `out`, whole or not at all; returns `out`.

    measured: expression as it was measured, float [n, G] in the map's order of spots and genes, NaN where it was not.
    picture: the tissue, finer than the map's own image. Values are rounded to one of 65,535, 255 or 31 steps of their gene's range, the fewer the larger the map; the page says so.
    Raises ResourceError where the viewer is missing, OutputError where `out` cannot be written.
    """
    check_viewer()
    genes = found.order[: max(1, MOST_VALUES // len(found.xy_px))]
    levels = steps_for(len(found.xy_px) * len(genes))
    packed = Packed()
    layers, blocks = _pack(found, genes, levels, measured, packed)
    scripts = [PLACE.read_text(encoding="utf-8"), *(shell.script(name) for name in SCRIPTS)]
    image, scale = picture or (found.image, found.image_scale)
    told = _told(found, genes, layers, blocks, wide=levels > MIDDLE)
    told["image"] = {"width": image.shape[1], "height": image.shape[0], "scale": scale}
    main = [
        shell.script("report.html"),
        _words(found, len(genes), measured is not None, levels),
        f'<img id="picture-of-tissue" alt="" hidden src="data:image/jpeg;base64,{_jpeg(image)}">\n',
        shell.data("told", json.dumps(told, allow_nan=False, separators=(",", ":")), "application/json"),
        shell.data("packed", "".join(packed.text)),
    ]
    write_whole(out, shell.page(found.title, _subtitle(found), "".join(main), scripts=scripts))
    return out


def _pack(
    found: Map, genes: list[int], levels: int, measured: NDArray[np.floating] | None, packed: Packed
) -> tuple[list[Layer], dict[str, Any]]:
    blocks: dict[str, Any] = {
        "xy": packed.add(found.xy_px.astype("<f4").tobytes()),
        "spots": packed.add("\n".join(name.replace("\n", " ") for name in found.spots).encode()),
        "colours": packed.add(b"".join(_table(colours) for colours in MAPS.values())),
    }
    layers = []
    for name, label, matrix in (
        ("predicted", "Predicted expression", found.expression),
        ("measured", "Measured expression", measured),
    ):
        if matrix is not None:
            layer = Layer(name, label, genes=True)
            blocks[name] = [packed.add(layer.take(codes)) for codes in encode_genes(matrix, genes, levels)]
            layers.append(layer)
    for name, label in CONFIDENCE.items():
        if name in found.table:
            layer = Layer(name, label, genes=False)
            codes = encode(found.table[name].to_numpy(dtype=np.float64), levels)
            blocks[name] = [packed.add(layer.take(codes))]
            layers.append(layer)
    return layers, blocks


def _table(colours: Any) -> bytes:
    rgb = np.asarray(colours(np.arange(256)))[:, :3]
    return np.round(rgb * 255).astype(np.uint8).tobytes()


def _told(
    found: Map, genes: list[int], layers: list[Layer], blocks: Mapping[str, Any], *, wide: bool
) -> dict[str, Any]:
    moran = found.morans_i[genes]
    return {
        "title": found.title,
        "mpp": found.mpp,
        "diameter": found.spot_diameter_px,
        "square": found.on_grid,
        "genes": [found.genes[place] for place in genes],
        "moran": [None if np.isnan(value) else round(float(value), 4) for value in moran],
        "layers": [vars(layer) for layer in layers],
        "wide": wide,
        "colours": list(MAPS),
        "blocks": blocks,
    }


def _jpeg(image: NDArray[np.uint8]) -> str:
    content = BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(content.getvalue()).decode("ascii")


def _subtitle(found: Map) -> str:
    told = [f"{len(found.xy_px):,} spots", f"{len(found.genes):,} genes"]
    if found.on_grid:
        told[0] = f"{len(found.xy_px):,} places, every {shell.shown(found.told['settings']['grid_um'])} µm"
    system = found.told.get("bundle", {}).get("system")
    if system is not None:
        told.append(f"predicted by {system} from the H&E picture alone")
    return "  ·  ".join(told)


def _words(found: Map, genes: int, measured: bool, levels: int) -> str:
    """What the page says in words: how to read it, the values of each gene, what the map was made of."""
    rounded = f"Values are rounded to one of {levels:,} steps of their gene's range; the map itself holds them in full."
    usual = "Colours run from the 1st to the 99th percentile of each map unless set otherwise."
    notes = [f"{usual} A ring is a spot without a value. {rounded}"]
    if genes < len(found.genes):
        notes.append(
            f"The {genes:,} most spatially structured of {len(found.genes):,} genes are in this page."
        )
    if "nearest_distance" in found.table:
        notes.append(
            "Nearest distance: from the spot's embedding to the nearest of the reference spots it was made of; where it is "
            "large, the tissue looks like nothing in the reference. Effective k: how many reference spots speak."
        )
    if measured:
        notes.append("Measured values are normalised as the predicted ones are.")
    unknown = int(np.count_nonzero(np.isnan(found.expression[:, 0])))
    if unknown:
        notes.append(f"{unknown:,} spots have no prediction, for their tile could not be read.")
    reading = shell.details("How to read this page", *map(shell.paragraph, notes))
    run = shell.details("Run summary and versions", shell.facts(found.told)) if found.told else ""
    rows = [
        {"Gene": found.genes[place], "Moran's I": float(found.morans_i[place])}
        for place in found.order[:genes]
    ]
    table = shell.details("All genes by spatial structure", shell.table(rows, label="Genes", sortable=True))
    return reading + table + run
