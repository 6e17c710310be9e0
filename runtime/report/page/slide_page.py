"""`slide.html`: a map to look at, in one file that any browser opens offline."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mclst.runtime.atomic import write_whole
from mclst.runtime.errors import ResourceError
from mclst.runtime.expression_map.reader import Map
from mclst.runtime.html_repr import format_value
from mclst.runtime.report.figures.colors import COLORMAP
from mclst.runtime.report.page import elements
from mclst.runtime.report.page.layers import Layer, pack_genes, pack_single, read_values
from mclst.runtime.report.page.openseadragon import PLACE
from mclst.runtime.report.page.packing import FINE, Packed
from mclst.runtime.report.page.subsample import Shown, subsample

SCRIPTS = ("tables.js", "packed.js", "compact.js", "painting.js", "picker.js", "pane.js", "report.js")
MAPS = {
    "Magma": COLORMAP,
    "Viridis": matplotlib.colormaps["viridis"],
    "Cividis": matplotlib.colormaps["cividis"],
    "Grey": matplotlib.colormaps["gray_r"],
}
"""All of them change in lightness alone in one direction, so that they can be told apart without seeing colours."""
MOST_VALUES = 40_000_000
"""Spots x genes in a page; of a larger map, the most structured genes are taken."""
JPEG_QUALITY = 80
MAPS_BYTES = 3_500_000
Picture = tuple[NDArray[np.uint8], float]
"""Of the whole slide: uint8 [h, w, 3], px per level-0 px."""
CONFIDENCE = {"nearest_distance": "Nearest distance", "effective_k": "Effective k"}


def check_viewer() -> None:
    """Raise ResourceError where this installation has no viewer to put into a page."""
    if not PLACE.is_file():
        raise ResourceError(
            "the viewer OpenSeadragon is not in this installation, so no page can be made; with npm at hand, run "
            "python -m mclst.runtime.report.page.openseadragon"
        )


def write_slide_page(
    found: Map,
    out: Path,
    *,
    measured: NDArray[np.floating] | None = None,
    picture: Picture | None = None,
    most_bytes: float = MAPS_BYTES,
) -> Path:
    """Write the page of a map to `out`, whole or not at all; returns `out`.

    measured: expression as it was measured, float [n, G] in the map's order of spots and genes, NaN where it was not.
    picture: the tissue, finer than the map's own image. most_bytes: of expression in the page, about, in base64: values are
    rounded as far as that calls for and `layers.py` says, and of very large maps some spots and genes are shown (`thinning.py`, MOST_VALUES); the page says so.
    Raises ResourceError where the viewer is missing, OutputError where `out` cannot be written.
    """
    check_viewer()
    shown = subsample(found.xy_px, found.spot_diameter_px)
    genes = found.order[: max(1, MOST_VALUES // len(shown.places))]
    packed = Packed()
    layers, blocks = _pack(found, shown.places, genes, measured, packed, most_bytes)
    scripts = [PLACE.read_text(encoding="utf-8"), *(elements.script(name) for name in SCRIPTS)]
    image, scale = picture or (found.image, found.image_scale)
    told = _told(found, shown, genes, layers, blocks)
    told["image"] = {"width": image.shape[1], "height": image.shape[0], "scale": scale}
    main = [
        elements.script("report.html"),
        _words(found, shown, genes, layers),
        f'<img id="picture-of-tissue" alt="" hidden src="data:image/jpeg;base64,{_jpeg(image)}">\n',
        elements.data("told", json.dumps(told, allow_nan=False, separators=(",", ":")), "application/json"),
        elements.data("packed", "".join(packed.text)),
    ]
    write_whole(out, elements.page(found.title, _subtitle(found, shown), "".join(main), scripts=scripts))
    return out


def _pack(
    found: Map,
    spots: NDArray[np.intp],
    genes: list[int],
    measured: NDArray[np.floating] | None,
    packed: Packed,
    most_bytes: float,
) -> tuple[list[Layer], dict[str, Any]]:
    xy_px = found.xy_px[spots]
    names = found.table.index[spots]
    blocks: dict[str, Any] = {
        "xy": packed.add(xy_px.astype("<f4").tobytes()),
        "spots": packed.add("\n".join(str(name).replace("\n", " ") for name in names).encode()),
        "colours": packed.add(b"".join(_table(colors) for colors in MAPS.values())),
    }
    layers = []
    matrices = {"predicted": found.expression} | ({} if measured is None else {"measured": measured})
    for name, matrix in matrices.items():
        layer = Layer(name, f"{name.capitalize()} expression", genes=True)
        values = read_values(matrix, spots, genes)
        blocks |= pack_genes(layer, values, xy_px, packed, most_bytes / len(matrices))
        layers.append(layer)
    for name, label in CONFIDENCE.items():
        if name in found.table:
            layer = Layer(name, label, genes=False)
            blocks |= pack_single(layer, found.table[name].to_numpy(dtype=np.float64)[spots], packed)
            layers.append(layer)
    return layers, blocks


def _table(colors: Any) -> bytes:
    rgb = np.asarray(colors(np.arange(256)))[:, :3]
    return np.round(rgb * 255).astype(np.uint8).tobytes()


def _told(
    found: Map, shown: Shown, genes: list[int], layers: list[Layer], blocks: Mapping[str, Any]
) -> dict[str, Any]:
    moran = found.morans_i[genes]
    return {
        "title": found.title,
        "mpp": found.mpp,
        "diameter": found.spot_diameter_px * shown.every,
        "square": found.on_grid,
        "genes": [found.genes[place] for place in genes],
        "moran": [None if np.isnan(value) else round(float(value), 4) for value in moran],
        "layers": [vars(layer) for layer in layers],
        "colours": list(MAPS),
        "blocks": blocks,
    }


def _jpeg(image: NDArray[np.uint8]) -> str:
    content = BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=JPEG_QUALITY, optimize=True, progressive=True)
    return base64.b64encode(content.getvalue()).decode("ascii")


def _subtitle(found: Map, shown: Shown) -> str:
    told = [f"{len(found.xy_px):,} spots", f"{len(found.genes):,} genes"]
    if found.on_grid:
        told[0] = f"{len(found.xy_px):,} places, every {format_value(found.told['settings']['grid_um'])} µm"
    if shown.every > 1:
        told[0] += f", {len(shown.places):,} of them in this page"
    system = found.told.get("bundle", {}).get("system")
    if system is not None:
        told.append(f"predicted by {system} from the H&E picture alone")
    return "  ·  ".join(told)


def _words(found: Map, shown: Shown, genes: list[int], layers: list[Layer]) -> str:
    """What the page says in words: how to read it, the values of each gene, what the map was made of."""
    usual = "Colours run from the 1st to the 99th percentile of each map unless set otherwise."
    notes = [f"{usual} A ring is a spot without a value. {_rounded(layers)}"]
    if len(genes) < len(found.genes):
        notes.append(
            f"The {len(genes):,} most spatially structured of {len(found.genes):,} genes are in this page."
        )
    if shown.every > 1:
        side = found.spot_diameter_px * shown.every
        told = f"{side:.4g} px" if found.mpp is None else f"{side * found.mpp:.4g} µm"
        notes.append(
            f"This page shows {len(shown.places):,} of the map's {len(found.xy_px):,} spots: of each square of {told} the one "
            f"nearest its middle, with its own values, as large as the square. Moran's I is over all spots."
        )
    if "nearest_distance" in found.table:
        notes.append(
            "Nearest distance: from the spot's embedding to the nearest of the reference spots it was made of; where it is "
            "large, the tissue looks like nothing in the reference. Effective k: how many reference spots speak."
        )
    if any(layer.name == "measured" for layer in layers):
        notes.append("Measured values are normalised as the predicted ones are.")
    unknown = int(np.count_nonzero(np.isnan(found.expression[:, 0])))
    if unknown:
        notes.append(f"{unknown:,} spots have no prediction, for their tile could not be read.")
    reading = elements.details("How to read this page", *map(elements.paragraph, notes))
    run = elements.details("Run summary and versions", elements.facts(found.told)) if found.told else ""
    rows = [{"Gene": found.genes[place], "Moran's I": float(found.morans_i[place])} for place in genes]
    table = elements.details(
        "All genes by spatial structure", elements.table(rows, label="Genes", sortable=True)
    )
    return reading + table + run


def _rounded(layers: list[Layer]) -> str:
    """How exact the expression in the page is."""
    steps = {layer.name: layer.steps for layer in layers if layer.genes}
    if min(steps.values()) == FINE - 1:
        exact = f"to one of {FINE:,} steps of their gene's range"
    else:
        told = {f"{50 / count:.2g} %": name for name, count in steps.items()}
        each = [percent if len(told) == 1 else f"{percent} ({name})" for percent, name in told.items()]
        exact = f"by at most {' and '.join(each)} of their gene's range"
    return f"Values are rounded here {exact}; the map itself holds them in full."
