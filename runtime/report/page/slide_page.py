"""`slide.html`: an interactive view of a map in one file that any browser opens offline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.atomic import write_atomically
from mclst.runtime.expression_map.reader import Map
from mclst.runtime.expression_map.writer import estimate_spot_diameter
from mclst.runtime.html_repr import format_value
from mclst.runtime.report.figures.colors import COLORMAPS
from mclst.runtime.report.page import elements
from mclst.runtime.report.page.layers import (
    COARSE_STEPS,
    FINE_STEPS,
    MAX_FINE_VALUES,
    DataBlocks,
    Layer,
    Matrix,
    encode_block,
    encode_channels,
    pack_genes,
)
from mclst.runtime.report.page.openseadragon import VIEWER_PATH, check_viewer
from mclst.runtime.report.page.subsample import subsample
from mclst.runtime.report.page.tissue import TissueJpeg, encode_tissue

SCRIPTS = ("tables.js", "data.js", "painting.js", "picker.js", "pane.js", "report.js")
MAX_PAGE_BYTES = 20_000_000
OF_SPOTS = {
    "expected_error": "Expected error",
    "distance_percentile": "Distance percentile",
    "nearest_distance": "Nearest distance",
    "effective_k": "Effective k",
}
"""Columns of `obs` that are layers of the page, and their labels."""
INTERVALS = {"low": "Lower bound", "high": "Upper bound"}
STRUCTURED = 10


def write_slide_page(
    expression_map: Map,
    path: Path,
    *,
    measured: NDArray[np.floating] | None = None,
    tissue: TissueJpeg | None = None,
    max_bytes: float = MAX_PAGE_BYTES,
    required_genes: Sequence[str] = (),
) -> tuple[str, ...]:
    """Write the page of a map, atomically.

    Genes are added in the order of `Map.order` until the page would exceed `max_bytes`. Of more than
    `subsample.MAX_SPOTS` spots a regular subset is shown.

    Parameters
    ----------
    expression_map : Map
    path : Path
    measured : float array [n, G], optional
        Measured expression in the map's order of spots and genes, NaN where missing.
    tissue : TissueJpeg, optional
        The slide. Default: the map's own image.
    max_bytes : float
        Size limit of the page. One gene and `required_genes` are kept even above it.
    required_genes : sequence of str
        Genes to keep, wherever they stand in that order.

    Returns
    -------
    tuple of str
        Notes for the user about genes that were left out.

    Raises
    ------
    InputError
        If the map lacks a required gene.
    ResourceError
        If the viewer is missing.
    OutputError
        If the file cannot be written.
    """
    check_viewer()
    page = _SlidePage(expression_map, measured is not None, tissue)
    matrices: list[Matrix] = [expression_map.expression, *([] if measured is None else [measured])]
    matrices += expression_map.layers.values()
    required = set(expression_map.gene_indices(required_genes))
    channels = pack_genes(
        matrices,
        page.sample.indices,
        sorted(expression_map.order, key=lambda gene: gene not in required),
        page.steps,
        page.blocks,
        max_chars=max_bytes - len(page.render()),
        required=len(required),
    )
    page.genes = [gene for gene in expression_map.order if gene in channels]
    for number in range(len(matrices)):
        page.layers[number].channels = [channels[gene][number] for gene in page.genes]
    left_out = len(expression_map.genes) - len(page.genes)
    if left_out:
        first = "most spatially structured" if expression_map.expected_r is None else "most reliable"
        kept = f"the {first} ones" + (" and the requested ones" if required else "")
        page.size_note = (
            f"{left_out:,} of {len(expression_map.genes):,} genes are left out to keep this page below "
            f"{max_bytes / 1e6:g} MB (--html-mb); it shows {kept}."
        )
    write_atomically(path, page.render())
    return (f"{path.name}: {page.size_note.replace('this page', 'the page')}",) if left_out else ()


class _SlidePage:
    """The parts of a page; `genes` and their channels are added last, within the size that remains."""

    def __init__(self, expression_map: Map, measured: bool, tissue: TissueJpeg | None) -> None:
        self.expression_map = expression_map
        self.genes: list[int] = []
        self.size_note = ""
        self.tissue = tissue or encode_tissue(expression_map.image, expression_map.image_scale)
        self.diameter_px = expression_map.spot_diameter_px or estimate_spot_diameter(expression_map.xy_px)
        self.sample = subsample(expression_map.xy_px, self.diameter_px)
        spots = self.sample.indices
        fine = len(spots) * len(expression_map.genes) <= MAX_FINE_VALUES
        self.steps = FINE_STEPS if fine else COARSE_STEPS
        # A map of other software may be measured.
        label = "Predicted expression" if expression_map.provenance or measured else "Expression"
        self.layers = [Layer("predicted", label, True, self.steps)]
        if measured:
            self.layers.append(Layer("measured", "Measured expression", True, self.steps))
        for name in expression_map.layers:
            self.layers.append(Layer(name, INTERVALS[name], True, self.steps))
        self.blocks = DataBlocks()
        for name, label in OF_SPOTS.items():
            column = expression_map.of_spots(name)
            if column is not None:
                ((text, channel),) = encode_channels(column[spots, None], FINE_STEPS)
                layer = Layer(name, label, False, FINE_STEPS, [{**channel, "block": self.blocks.add(text)}])
                self.layers.append(layer)
        contents = {
            "xy": expression_map.xy_px[spots].astype("<f4").tobytes(),
            "spots": "\n".join(
                str(name).replace("\n", " ") for name in np.asarray(expression_map.obs.index)[spots]
            ).encode(),
            "outside": np.packbits(expression_map.outside[spots]).tobytes(),
            "colormaps": b"".join(colors.tobytes() for colors in COLORMAPS.values()),
        }
        self.positions = {name: self.blocks.add(encode_block(part)) for name, part in contents.items()}
        self.structured = [gene for gene, _ in expression_map.distinct(STRUCTURED)]
        self.missing = int(np.count_nonzero(np.isnan(expression_map.expression[:, 0])))

    def render(self) -> bytes:
        """Render the page as it is so far."""
        scripts = [VIEWER_PATH.read_text(encoding="utf-8"), *map(elements.script, SCRIPTS)]
        metadata = json.dumps(self._metadata(), allow_nan=False, separators=(",", ":"))
        main = [
            self._banner(),
            elements.paragraph(self.size_note) if self.size_note else "",
            elements.script("report.html"),
            self._details(),
            f'<img id="tissue-image" alt="" hidden src="data:image/jpeg;base64,{self.tissue.content}">\n',
            elements.data("metadata", metadata, "application/json"),
            elements.data("data", "".join(self.blocks.texts)),
        ]
        return elements.page(self.expression_map.title, self._subtitle(), "".join(main), scripts=scripts)

    def _metadata(self) -> dict[str, Any]:
        expression_map = self.expression_map
        moran = expression_map.morans_i[self.genes]
        number = {gene: i for i, gene in enumerate(self.genes)}
        reliable = expression_map.reliable
        return {
            "title": expression_map.title,
            "mpp": expression_map.mpp,
            "spot_diameter_px": self.diameter_px * self.sample.stride,
            "square": expression_map.on_grid,
            "image": {name: getattr(self.tissue, name) for name in ("width", "height", "scale")},
            "genes": [expression_map.genes[gene] for gene in self.genes],
            "morans_i": [_digits(value) for value in moran],
            "expected_r": self._expected_r(),
            "reliable": None if reliable is None else [bool(reliable[gene]) for gene in self.genes],
            "structured": [number[gene] for gene in self.structured if gene in number],
            "colormaps": list(COLORMAPS),
            "layers": [vars(layer) for layer in self.layers],
            "blocks": self.positions,
        }

    def _expected_r(self) -> list[float | None] | None:
        expected = self.expression_map.expected_r
        if expected is None:
            return None
        return [_digits(expected[gene]) for gene in self.genes]

    def _banner(self) -> str:
        """The verdict on the slide, as an alarm if most of it is unlike the training's."""
        trust = self.expression_map.provenance.get("trust", {})
        verdict = trust.get("verdict") if isinstance(trust, dict) else None
        if not isinstance(verdict, str):
            return ""
        alarm = float(trust.get("outside_share", 0)) > 0.5
        return elements.notice(f"{verdict[:1].upper()}{verdict[1:]}.", alarm=alarm)

    def _subtitle(self) -> str:
        expression_map = self.expression_map
        facts = [f"{len(expression_map.xy_px):,} spots", f"{len(expression_map.genes):,} genes"]
        if expression_map.on_grid:
            grid_um = expression_map.provenance["settings"]["grid_um"]
            facts[0] += f" on a grid of {format_value(grid_um)} µm"
        if self.sample.stride > 1:
            facts[0] += f" ({len(self.sample.indices):,} in this page)"
        if self.size_note:
            facts[1] += f" ({len(self.genes):,} in this page)"
        bundle = expression_map.provenance.get("bundle", {})
        if model := bundle.get("title", bundle.get("system")):
            facts.append(f"predicted by {model} from the H&E image alone")
        return "  ·  ".join(facts)

    def _details(self) -> str:
        """How to read the page, the table of genes, the provenance of the map."""
        expression_map = self.expression_map
        reading = elements.details("How to read this page", *map(elements.paragraph, self._notes()))
        genes = elements.table(self._gene_rows(), label="Genes", sortable=True)
        calibrated = expression_map.expected_r is not None
        title = "Genes by expected reliability" if calibrated else "Genes by spatial structure"
        table = elements.details(title, genes)
        if not expression_map.provenance:
            return reading + table
        facts = elements.facts(expression_map.provenance)
        return reading + table + elements.details("Run summary and versions", facts)

    def _gene_rows(self) -> list[dict[str, Any]]:
        expression_map, channels = self.expression_map, self.layers[0].channels
        expected, reliable = expression_map.expected_r, expression_map.reliable
        rows = []
        for gene, channel in zip(self.genes, channels, strict=False):
            row: dict[str, Any] = {"Gene": expression_map.genes[gene]}
            if expected is not None and reliable is not None:
                row |= {"Expected r": float(expected[gene]), "Reliable": "yes" if reliable[gene] else "no"}
            row["Moran's I"] = float(expression_map.morans_i[gene])
            low, high = channel["low"], channel["low"] + self.steps * channel["step"]
            row |= {"Lowest": low, "Highest": high}
            rows.append(row)
        return rows

    def _notes(self) -> list[str]:
        expression_map, sample = self.expression_map, self.sample
        percent = f"{50 / self.steps:.2g} %"
        notes = [
            "Colors span each map's 1st to 99th percentile by default. A ring is a spot without a value.",
            f"Expression in this page is off by at most {percent} of the gene's range; the map is exact.",
        ]
        if sample.stride > 1:
            side = self.diameter_px * sample.stride
            mpp = expression_map.mpp
            length = f"{side:.4g} px" if mpp is None else f"{side * mpp:.4g} µm"
            notes.append(
                f"This page shows {len(sample.indices):,} of the map's {len(expression_map.xy_px):,} spots: "
                f"the one nearest the center of each square of {length}, with its own values, drawn as "
                "large as the square. Moran's I is over all spots."
            )
        if expression_map.of_spots("nearest_distance") is not None:
            notes.append(
                "Nearest distance: from the spot's embedding to the nearest reference spot behind its "
                "prediction. Effective k: how many reference spots contribute to the prediction. "
                "Neither tells how large the error is."
            )
        if expression_map.expected_r is not None:
            notes.append(
                "Expected r: of a gene with measured expression in a new section, by held-out sections. "
                "A gene is reliable if 9 of 10 new sections are expected to exceed the run's level; "
                "the others are gray and last."
            )
            notes.append(
                "Hatched spots are outside: tissue farther from the training's than nearly all held-out "
                "spots, where none of these figures holds."
            )
        if expression_map.of_spots("expected_error") is not None:
            notes.append(
                "Expected error: root mean squared error over the genes, in the map's units, of held-out "
                "spots with a like prediction; unknown where hatched."
            )
        if expression_map.layers:
            notes.append(
                "Lower and upper bound: an interval that held as many of the measured values of held-out "
                "sections as the run asked for. Spots outside have none."
            )
        if any(layer.name == "measured" for layer in self.layers):
            notes.append("Measured values are normalized like the predicted ones.")
        if self.missing:
            notes.append(f"{self.missing:,} spots have no prediction because their tile could not be read.")
        return notes


def _digits(value: float) -> float | None:
    """More digits than the page shows: of a value rounded before, it could show the wrong neighbor."""
    return None if np.isnan(value) else round(float(value), 6)
