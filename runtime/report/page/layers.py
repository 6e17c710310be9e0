"""What colours the spots of a page: expression predicted and measured, and how sure it is, each packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mclst.runtime.expression_map.morans_i import BLOCK_BYTES
from mclst.runtime.report.figures.colors import usual_limits
from mclst.runtime.report.page.codec import CompactMap, Plan
from mclst.runtime.report.page.low_rank import LOADING
from mclst.runtime.report.page.packing import FINE, MIDDLE, Packed, encode

MOST_FINE = 1_000_000
"""Values (spots x genes) up to which each is told to one of FINE steps of its gene's range."""
LADDER = (254, 180, 126, 90, 62, 44, 30, 22, 18, 14)
"""Steps of a gene's range in a larger map: the most that fit into the bytes it may take, else the fewest."""


@dataclass
class Layer:
    """Something that colours spots.

    genes: whether there is one for each gene, or a single one. steps: of a gene's range, in which its values are told; none is
    off by more than half a step. low, step, limits: of each gene (value = low + step · steps), as `packing.Codes` has
    them. compact: how the steps are told where they are not simply written, for the page's reader.
    """

    name: str
    label: str
    genes: bool
    steps: int = FINE - 1
    low: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    limits: list[tuple[float, float]] = field(default_factory=list)
    compact: dict[str, Any] | None = None

    def scale(self, low: float, step: float, limits: tuple[float, float]) -> None:
        """Remember what the steps of the next gene mean."""
        self.low.append(low)
        self.step.append(step)
        self.limits.append(limits)


def read_values(
    expression: NDArray[np.floating] | h5py.Dataset, spots: NDArray[np.intp], genes: Sequence[int]
) -> NDArray[np.float32]:
    """expression [n, G] at some spots (rising) and genes, float32 [m, g], read some spots at a time."""
    found = np.empty((len(spots), len(genes)), np.float32)
    at_once = max(1, BLOCK_BYTES // (8 * expression.shape[1]))
    chosen = np.asarray(genes)
    for start in range(0, expression.shape[0], at_once):
        first, last = np.searchsorted(spots, (start, start + at_once))
        if first < last:
            block = np.asarray(expression[start : start + at_once])
            found[first:last] = block[spots[first:last] - start][:, chosen]
    return found


def pack_single(layer: Layer, values: NDArray[np.floating], packed: Packed) -> dict[str, Any]:
    """Pack what has one value a spot, [n], NaN where unknown; its blocks."""
    codes = encode(values, FINE)
    layer.scale(codes.low, codes.step, codes.limits)
    return {layer.name: [packed.add(codes.bytes())]}


def pack_genes(
    layer: Layer,
    values: NDArray[np.float32],
    xy_px: NDArray[np.float64],
    packed: Packed,
    most_bytes: float,
) -> dict[str, Any]:
    """Pack values [n, g], NaN where unknown, of spots at xy_px [n, 2]; their blocks. `values` is used up.

    Maps of more than MOST_FINE values are told compactly, in as many steps of LADDER as fit into `most_bytes` of base64,
    unless single values are missing in them, as they are in no prediction.
    """
    finite = np.isfinite(values)
    known = np.asarray(finite.any(axis=1), np.bool_)
    if values.size > MOST_FINE and finite[known].all():
        return _pack_compact(layer, values, known, xy_px, packed, most_bytes)
    layer.steps = (FINE if values.size <= MOST_FINE else MIDDLE) - 1
    places = []
    for column in values.T:
        codes = encode(column, layer.steps + 1)
        layer.scale(codes.low, codes.step, codes.limits)
        places.append(packed.add(codes.bytes()))
    return {layer.name: places}


def _pack_compact(
    layer: Layer,
    values: NDArray[np.float32],
    known: NDArray[np.bool_],
    xy_px: NDArray[np.float64],
    packed: Packed,
    most_bytes: float,
) -> dict[str, Any]:
    values = values[known]
    lows, spans = _to_unit(values, layer)
    found = CompactMap(values, xy_px[known])
    plan = _choose(found, 0.75 * most_bytes)
    layer.steps = plan.steps
    layer.low, layer.step = lows, [span / plan.steps for span in spans]
    whole, map_weights, maps = found.shared(plan)
    weights, genes = found.genes(plan, whole)
    layer.compact = {"weights": weights.tolist(), "mapWeights": map_weights.tolist(), "unit": LOADING}
    mixture = found.mixture
    back = np.where(found.before >= 0, np.arange(len(values))[:, None] - found.before, 0)
    loadings = np.rint(mixture.loadings[:, : plan.maps] * LOADING)
    return {
        layer.name: [packed.add_squeezed(stream) for stream in genes],
        f"{layer.name} maps": [packed.add_squeezed(stream) for stream in maps],
        f"{layer.name} loadings": packed.add(loadings.astype("<i2").tobytes()),
        f"{layer.name} means": packed.add(mixture.mean.astype("<f4").tobytes()),
        f"{layer.name} back": packed.add(back.T.astype("<u4").tobytes()),
        f"{layer.name} known": packed.add(known.tobytes()),
    }


def _choose(found: CompactMap, most_bytes: float) -> Plan:
    """The finest plan of LADDER that takes `most_bytes` at the most, or the coarsest."""
    first, last = 0, len(LADDER) - 1
    plan = None
    while first < last:
        middle = (first + last) // 2
        tried = found.plan(LADDER[middle])
        if tried.bytes <= most_bytes:
            plan, last = tried, middle
        else:
            first = middle + 1
    return plan if plan is not None and plan.steps == LADDER[first] else found.plan(LADDER[first])


def _to_unit(values: NDArray[np.float32], layer: Layer) -> tuple[list[float], list[float]]:
    """Bring each gene of values [m, g] to 0 … 1, in place, and tell the layer its limits; lowest values and ranges."""
    lows, spans = [], []
    for column in values.T:
        low, high = float(column.min()), float(column.max())
        span = high - low
        layer.limits.append(usual_limits(column))
        column -= np.float32(low)
        if span > 0:
            column /= np.float32(span)
        lows.append(low)
        spans.append(span)
    return lows, spans
