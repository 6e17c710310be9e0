"""How far the activations of a graph reach on real tiles: a histogram per tensor, and a range cut from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from mclst.runtime.encoder.onnxruntime_cpu import open_graph
from mclst.runtime.encoder.session import INPUT
from mclst.runtime.errors import ReferenceDataError

Method = Literal["percentile", "entropy"]
METHODS: tuple[Method, ...] = ("percentile", "entropy")
PERCENTILE = 99.99
"""Share of a tensor's values inside its range, in percent."""
BINS = 2048
LEVELS = 128
"""Magnitudes that int8 can tell apart."""
LEAST = 1e-30
"""The least limit of a histogram, so that its bins are wider than float32's least numbers."""
TILES_AT_ONCE = 2
"""All activations of a batch are in memory together: some 100 MB per tile of DenseNet-121."""


class Magnitudes:
    """Histogram of |x| from 0 to a limit that doubles as larger values come, its bins then merged two by two."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count all of `values`. Raises ValueError where one is not finite."""
        found = np.abs(values).ravel()
        largest = float(found.max(initial=0.0))
        if not np.isfinite(largest):
            raise ValueError("an activation is not finite")
        if self.limit == 0.0 and largest > 0.0:
            self.limit = max(largest, LEAST)
        while largest > self.limit > 0.0:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([merged, np.zeros_like(merged)])
            self.limit *= 2
        if self.limit == 0.0:
            self.counts[0] += found.size
            return
        places = np.minimum((found * np.float32(BINS / self.limit)).astype(np.int32), BINS - 1)
        self.counts += np.bincount(places, minlength=BINS)

    def range(self, method: Method) -> float:
        """The magnitude at which values are cut; 0 where all are 0."""
        bins = _by_percentile(self.counts) if method == "percentile" else _by_entropy(self.counts)
        return bins * self.limit / BINS


def _by_percentile(counts: NDArray[np.int64]) -> int:
    """Bins that hold PERCENTILE of all values."""
    return int(np.searchsorted(np.cumsum(counts), counts.sum() * PERCENTILE / 100)) + 1


def _by_entropy(counts: NDArray[np.int64]) -> int:
    """Bins whose LEVELS-step version loses least information: the least KL divergence.

    After Migacz, "8-bit inference with TensorRT", GTC 2017. Exact zeros, of which a ReLU makes most values, are no
    matter to any range and are left out: the first bin counts as the second.
    """
    hist = counts.astype(np.float64)
    hist[0] = min(hist[0], hist[1])
    last = int(np.flatnonzero(hist)[-1]) + 1 if hist.any() else 1
    best, least = max(last, 1), np.inf
    for cut in range(LEVELS, last + 1, 8):
        p = hist[:cut].copy()
        p[-1] += hist[cut:].sum()
        starts = np.arange(LEVELS) * cut // LEVELS
        filled = hist[:cut] > 0
        if not filled.any():
            continue
        sums = np.add.reduceat(hist[:cut], starts)
        shares = np.add.reduceat(filled.astype(np.float64), starts)
        q = np.repeat(sums / np.maximum(shares, 1), np.diff(np.append(starts, cut))) * filled
        # A clipped tail falls into a bin of its own even where that bin was empty.
        inside = (p > 0) & (q > 0)
        lost = p[(p > 0) & (q == 0)].sum()
        p, q = p / p.sum(), q / q.sum()
        divergence = float((p[inside] * np.log(p[inside] / q[inside])).sum()) + (np.inf if lost else 0.0)
        if divergence < least:
            best, least = cut, divergence
    return best


def calibrate(
    model: onnx.ModelProto, tensors: Sequence[str], tiles: NDArray[np.uint8], method: Method
) -> dict[str, float]:
    """The range of each of `tensors` while the graph runs over `tiles` uint8 [n, S, S, 3], a few tiles at a time.

    Raises ReferenceDataError where a value is not finite.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {o.name for o in watched.graph.output}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors if name not in known
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "watched.onnx"
        onnx.save(watched, path, save_as_external_data=True, location="weights")
        session = open_graph(path, "cpu")
    seen = {name: Magnitudes() for name in tensors}
    for start in range(0, len(tiles), TILES_AT_ONCE):
        some = np.ascontiguousarray(tiles[start : start + TILES_AT_ONCE])
        for name, values in zip(tensors, session.run(list(tensors), {INPUT: some}), strict=True):
            try:
                seen[name].add(values)
            except ValueError as error:
                raise ReferenceDataError(
                    f"{error} ({name}) on a calibration tile; export without --precision int8"
                ) from error
    return {name: magnitudes.range(method) for name, magnitudes in seen.items()}
