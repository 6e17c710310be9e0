"""Activation ranges of a graph on real tiles, from a histogram per tensor."""

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
"""Percentage of a tensor's values inside its range."""
BINS = 2048
LEVELS = 128
"""Magnitudes that int8 distinguishes."""
MIN_LIMIT = 1e-30
"""Smallest histogram limit; keeps bins wider than the smallest float32."""
TILE_BATCH = 2
"""Small, since all activations are in memory: some 100 MB per tile of DenseNet-121."""


class MagnitudeHistogram:
    """Histogram of |x| from 0 to a limit that doubles for larger values, by merging pairs of bins."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Count all values. Raises ValueError if one is not finite."""
        magnitudes = np.abs(values).ravel()
        largest = float(magnitudes.max(initial=0.0))
        if not np.isfinite(largest):
            raise ValueError("an activation is not finite")
        if self.limit == 0.0 and largest > 0.0:
            self.limit = max(largest, MIN_LIMIT)
        while largest > self.limit > 0.0:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([merged, np.zeros_like(merged)])
            self.limit *= 2
        if self.limit == 0.0:
            self.counts[0] += magnitudes.size
            return
        bins = np.minimum((magnitudes * np.float32(BINS / self.limit)).astype(np.int32), BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)

    def range(self, method: Method) -> float:
        """Magnitude at which values are clipped; 0 if all are 0."""
        bins = _by_percentile(self.counts) if method == "percentile" else _by_entropy(self.counts)
        return bins * self.limit / BINS


def _by_percentile(counts: NDArray[np.int64]) -> int:
    """Number of bins that hold PERCENTILE of all values."""
    return int(np.searchsorted(np.cumsum(counts), counts.sum() * PERCENTILE / 100)) + 1


def _by_entropy(counts: NDArray[np.int64]) -> int:
    """Number of bins whose quantization to LEVELS has the least KL divergence.

    References
    ----------
    Migacz, "8-bit inference with TensorRT", GTC 2017.
    """
    hist = counts.astype(np.float64)
    # A ReLU makes most values exactly zero, which any range represents: count the first bin like the second.
    hist[0] = min(hist[0], hist[1])
    last = int(np.flatnonzero(hist)[-1]) + 1 if hist.any() else 1
    best, lowest = max(last, 1), np.inf
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
        # The clipped tail falls into the last bin even if that was empty.
        inside = (p > 0) & (q > 0)
        lost = p[(p > 0) & (q == 0)].sum()
        p, q = p / p.sum(), q / q.sum()
        divergence = float((p[inside] * np.log(p[inside] / q[inside])).sum()) + (np.inf if lost else 0.0)
        if divergence < lowest:
            best, lowest = cut, divergence
    return best


def calibrate(
    model: onnx.ModelProto, tensors: Sequence[str], tiles: NDArray[np.uint8], method: Method
) -> dict[str, float]:
    """Range of each of `tensors` while the graph runs over `tiles` uint8 [n, S, S, 3].

    Raises ReferenceDataError if a value is not finite.
    """
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    known = {o.name for o in probed.graph.output}
    probed.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors if name not in known
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "probed.onnx"
        onnx.save(probed, path, save_as_external_data=True, location="weights")
        session = open_graph(path, "cpu")
    histograms = {name: MagnitudeHistogram() for name in tensors}
    for start in range(0, len(tiles), TILE_BATCH):
        batch = np.ascontiguousarray(tiles[start : start + TILE_BATCH])
        for name, values in zip(tensors, session.run(list(tensors), {INPUT: batch}), strict=True):
            try:
                histograms[name].add(values)
            except ValueError as error:
                raise ReferenceDataError(
                    f"{error} ({name}) on a calibration tile; export without --precision int8"
                ) from error
    return {name: histogram.range(method) for name, histogram in histograms.items()}
