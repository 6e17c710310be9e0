"""`rdf.yaml` of a bundle: its encoder as a model of bioimage.io, with tiles and what the graph gives.

The format is https://github.com/bioimage-io/spec-bioimage-io, model 0.5. A regression's graph gives
expression; with a bank it gives the embedding, which mclst turns into expression.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.atomic import check_writable, write_atomically
from mclst.runtime.bundle.about import About
from mclst.runtime.bundle.bundle import ENCODER, PARITY_OUTPUT, PARITY_TILES, Bundle
from mclst.runtime.bundle.onnx_scan import opset_version
from mclst.runtime.encoder.onnxruntime_cpu import OnnxSession
from mclst.runtime.errors import BundleError, InputError
from mclst.runtime.hashing import file_sha256
from mclst.runtime.sharing.card import yaml_text
from mclst.runtime.sharing.facts import describe
from mclst.runtime.sharing.parity_tiles import ATOL, RTOL, read_parity_tiles
from mclst.runtime.sharing.verify import CARD, RDF, TEST_INPUT, TEST_OUTPUT, check_not_cached
from mclst.runtime.slide.base import Slide
from mclst.runtime.tiling.grid import make_grid
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.runtime.tiling.tissue import find_tissue

FORMAT = "0.5.4"
TILES = 4
ASSUMED_MPP = 0.5
"""For slides without a scale. Tissue is found by color at about 8 µm/px, where a factor of 2 is harmless."""
TOLERANCE = {"relative_tolerance": RTOL, "absolute_tolerance": ATOL}
DOI = re.compile(r"10\.\d{4,9}/[^\s)]+")


def write_rdf(
    bundle: Bundle, tiles: NDArray[np.uint8] | None, authors: Sequence[str], *, overwrite: bool = False
) -> Path:
    """Write rdf.yaml and its test tensors beside the manifest.

    Parameters
    ----------
    bundle : Bundle
        With a card and a license.
    tiles : uint8 array [n, S, S, 3], optional
        RGB, whose output is written with them; by default the parity tiles that the bundle keeps.
    authors : sequence of str
        Names of the bundle's makers.
    overwrite : bool
        Replace existing files.

    Returns
    -------
    Path
        rdf.yaml.

    Raises
    ------
    BundleError
        If the bundle predicts from all spots of a slide, has no card or license, or is in the hub's cache.
    OutputError
        If a file exists or cannot be written.
    """
    check_not_cached(bundle)
    about = bundle.manifest.about or About()
    if bundle.manifest.kind == "slide":
        raise BundleError(
            f"{bundle.path} predicts from all spots of a slide together, which bioimage.io cannot "
            "describe; share "
            "the bundle itself"
        )
    if about.license is None:
        raise BundleError(f"{bundle.path} states no license, which bioimage.io needs; export with --license")
    if not (bundle.path / CARD).is_file():
        raise BundleError(f"{bundle.path} has no {CARD}; write it with mclst-bundle card")
    if tiles is None:
        kept = read_parity_tiles(bundle)
        if kept is None:
            raise BundleError(
                f"{bundle.path} keeps no tiles of its parity proof; export with --keep-parity-tiles 4, or "
                "give a slide"
            )
        check_writable(bundle.path / RDF, overwrite=overwrite)
        tensors = {name: bundle.manifest.files[name].sha256 for name in (PARITY_TILES, PARITY_OUTPUT)}
        width = kept[1].shape[1]
    else:
        for name in (RDF, TEST_INPUT, TEST_OUTPUT):
            check_writable(bundle.path / name, overwrite=overwrite)
        output = OnnxSession(bundle.encoder_path).encode(tiles)
        width, tensors = output.shape[1], {}
        for name, array in ((TEST_INPUT, tiles), (TEST_OUTPUT, output)):
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            write_atomically(bundle.path / name, buffer.getvalue())
            tensors[name] = file_sha256(bundle.path / name)
    text = yaml_text(_description(bundle, about, authors, tensors, width))
    write_atomically(bundle.path / RDF, text.encode())
    return bundle.path / RDF


def tissue_tiles(bundle: Bundle, slide: Slide) -> NDArray[np.uint8]:
    """Read TILES tiles spread over a slide's tissue, uint8 [n, S, S, 3]; InputError if there is no tissue."""
    tile = bundle.manifest.tile
    mpp = slide.mpp or ASSUMED_MPP
    shape = TileShape(tile.size_px, None if slide.mpp is None else tile.mpp, tile.pad)
    side_um = tile.size_px * (shape.mpp or mpp)
    centers = make_grid(slide, side_um, mpp, find_tissue(slide, mpp)).spots.xy_px
    chosen = centers[np.unique(np.linspace(0, len(centers) - 1, TILES + 2).round().astype(int))[1:-1]]
    if not len(chosen):
        raise InputError(f"{slide.path} has too little tissue for {TILES} tiles; give another slide")
    (batch,) = Tiles(slide, chosen, shape, batch_size=len(chosen), workers=1)
    if batch.failed:
        raise InputError(f"{slide.path}: {batch.failed[0][1]}; give another slide")
    return batch.tiles.copy()


def _description(
    bundle: Bundle, about: About, authors: Sequence[str], tensors: dict[str, str], width: int
) -> dict[str, Any]:
    m, facts = bundle.manifest, describe(bundle)
    tested = [{"source": name, "sha256": sha256} for name, sha256 in tensors.items()]
    assert about.license is not None, "write_rdf checks"
    predicts = m.kind == "regression" and width == m.genes
    names = bundle.genes if predicts else [f"embedding{i}" for i in range(width)]
    side = m.tile.size_px
    # A scale is known in physical units, or not at all.
    scale = {"scale": m.tile.mpp, "unit": "micrometer"} if m.tile.mpp else {}
    space = [{"type": "space", "id": axis, "size": side, **scale} for axis in "yx"]
    pixels = [{"type": "batch"}, *space, {"type": "channel", "channel_names": ["red", "green", "blue"]}]
    values = [{"type": "batch"}, {"type": "channel", "channel_names": names}]
    record = m.files[ENCODER]
    weights: dict[str, Any] = {
        "source": ENCODER, "sha256": record.sha256, "opset_version": opset_version(bundle.encoder_path),
    }  # fmt: skip
    if f"{ENCODER}.data" in m.files:
        data = f"{ENCODER}.data"
        weights["external_data"] = {"source": data, "sha256": m.files[data].sha256}
    return {
        "type": "model",
        "format_version": FORMAT,
        "name": re.sub(r"[^\w+\- ()/]", " ", facts.title, flags=re.ASCII)[:128],
        "description": (
            f"Gene expression from H&E tissue: {m.genes} genes by {m.system}. "
            + ("" if predicts else "This graph gives the embedding; mclst-infer gives the expression.")
        ).strip(),
        "authors": [{"name": author} for author in authors],
        "license": about.license.name,
        "documentation": CARD,
        "cite": [
            {
                "text": text,
                **({"doi": doi[0].rstrip(".,;")} if (doi := DOI.search(text)) else {"url": _url(text)}),
            }
            for text in about.citation
            if DOI.search(text) or _url(text)
        ],
        "tags": ["histology", "spatial-transcriptomics", "gene-expression"],
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "inputs": [
            {
                "id": "tiles",
                "axes": pixels,
                "data": {"type": "uint8"},
                "test_tensor": tested[0],
            }
        ],
        "outputs": [
            {
                "id": "expression" if predicts else "embedding",
                "axes": values,
                "data": {"type": "float32"},
                "test_tensor": tested[1],
            }
        ],
        "weights": {"onnx": weights},
        "config": {
            "bioimageio": {"reproducibility_tolerance": [TOLERANCE]},
            "mclst": {"bundle_sha256": bundle.sha256, "kind": m.kind},
        },
    }


def _url(text: str) -> str:
    match = re.search(r"https?://\S+", text)
    return match[0].rstrip(".,;)") if match else ""
