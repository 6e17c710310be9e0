"""The values that color a page's spots: quantized, deflated, base64."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import h5py
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from mclst.runtime.expression_map.morans_i import BLOCK_BYTES

FINE_STEPS, COARSE_STEPS = 65_534, 254
"""Steps of a gene's range that two bytes and one byte hold; code 0 marks a missing value."""
MAX_FINE_VALUES = 1_000_000
"""Maps with more values (spots x genes) use COARSE_STEPS."""
BATCH_VALUES = 20_000_000
"""Values read at a time, of each matrix."""
CHUNK_VALUES = 500_000
"""Values quantized at a time."""
LEVEL = 6
GENE_CHARS, CHANNEL_CHARS = 160, 140
"""Estimated characters of a gene outside the blocks: name and table row; its channel in each layer."""

Matrix: TypeAlias = NDArray[np.floating] | h5py.Dataset
Codes: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
Block = tuple[int, int]
"""Start and length of a block, in characters."""
Channel = dict[str, Any]
"""One gene in a layer: `low`, `step`, `limits`, `block`."""


@dataclass
class DataBlocks:
    """Blocks of bytes, each deflated (zlib) and base64-encoded, joined to one text."""

    texts: list[str] = field(default_factory=list)
    size: int = 0

    def add(self, text: str) -> Block:
        """Append an encoded block and return its position."""
        block = self.size, len(text)
        self.texts.append(text)
        self.size += len(text)
        return block


def encode_block(content: bytes) -> str:
    """Deflate bytes and encode them as base64."""
    return base64.b64encode(imagecodecs.deflate_encode(content, level=LEVEL, raw=False)).decode("ascii")


@dataclass
class Layer:
    """A quantity that colors the spots: one channel per gene, or a single one.

    No value is off by more than half of a channel's `step`, its range / `steps`.
    """

    name: str
    label: str
    genes: bool
    steps: int
    channels: list[Channel] = field(default_factory=list)


def quantize(values: NDArray[np.floating], steps: int) -> tuple[Codes, list[Channel]]:
    """Round the values of each gene to equal steps of its range.

    Parameters
    ----------
    values : float array [n, g]
        Missing where not finite.
    steps : int
        Number of steps: `FINE_STEPS`, `COARSE_STEPS` or fewer.

    Returns
    -------
    codes : uint8 or uint16 array [g, n]
        0 where missing, else value = low + (code - 1) * step.
    channels : list of dict
        Of each gene: `low`, `step` and `limits` of the color scale, the 1st and 99th percentile; 0 and 1 if
        all is missing.
    """
    known = np.isfinite(values)
    count = np.count_nonzero(known, axis=0)
    last = np.maximum(count - 1, 0)
    ordered, column = np.sort(np.where(known, values, np.nan), axis=0), np.arange(values.shape[1])

    def at(index: NDArray[Any]) -> NDArray[np.float64]:
        return np.where(count > 0, ordered[index, column].astype(np.float64), 0.0)

    low, high = at(np.zeros_like(last)), at(last)
    step = (high - low) / steps
    limits = []
    for share in (0.01, 0.99):
        # Between neighbors in order, as numpy.percentile does by default.
        below = np.floor(share * last).astype(np.intp)
        before, after = at(below), at(np.minimum(below + 1, last))
        limits.append(before + (after - before) * (share * last - below))
    scaled = np.where(known, values - low, 0.0) / np.where(step > 0, step, 1.0)
    kind = np.uint16 if steps > COARSE_STEPS else np.uint8
    codes: Any = np.where(known, 1 + np.rint(scaled), 0).T.astype(kind, order="C")
    channels: list[Channel] = [
        {"low": of_low, "step": of_step, "limits": ends if some else (0.0, 1.0)}
        for of_low, of_step, some, *ends in zip(
            low.tolist(), step.tolist(), count.tolist(), *(limit.tolist() for limit in limits), strict=True
        )
    ]
    return codes, channels


def encode_channels(values: NDArray[np.floating], steps: int) -> list[tuple[str, Channel]]:
    """Quantize values [n, g] and encode each gene's codes, little-endian."""
    codes, channels = quantize(values, steps)
    stored = codes.astype(codes.dtype.newbyteorder("<"), copy=False)
    return [(encode_block(row.tobytes()), channel) for row, channel in zip(stored, channels, strict=True)]


def pack_genes(
    matrices: Sequence[Matrix],
    spots: NDArray[np.intp],
    genes: Sequence[int],
    steps: int,
    blocks: DataBlocks,
    *,
    max_chars: float,
    required: int = 0,
) -> dict[int, list[Channel]]:
    """Pack genes in the given order until the next one would exceed `max_chars`.

    Parameters
    ----------
    matrices : sequence of float arrays or datasets [n, G]
        Expression, one matrix per layer, NaN where missing.
    spots : int array [m]
        Rows to pack, ascending.
    genes : sequence of int
        Columns to pack, the most important first.
    steps : int
        Steps of a gene's range.
    blocks : DataBlocks
        Receives the values.
    max_chars : float
        Limit on the characters that genes add to the page.
    required : int
        Number of first genes to pack regardless of the limit. At least one gene is packed.

    Returns
    -------
    dict
        Packed gene to its channel in each layer.
    """
    packed: dict[int, list[Channel]] = {}
    batch, chunk = (max(1, size // len(spots)) for size in (BATCH_VALUES, CHUNK_VALUES))
    for start in range(0, len(genes), batch):
        columns = genes[start : start + batch]
        values = [read_values(matrix, spots, columns) for matrix in matrices]
        for first in range(0, len(columns), chunk):
            some = slice(first, first + chunk)
            layers = [encode_channels(part[:, some], steps) for part in values]
            for gene, *encoded in zip(columns[some], *layers, strict=True):
                max_chars -= GENE_CHARS + sum(len(text) + CHANNEL_CHARS for text, _ in encoded)
                if max_chars < 0 and len(packed) >= max(1, required):
                    return packed
                packed[gene] = [{**channel, "block": blocks.add(text)} for text, channel in encoded]
    return packed


def read_values(expression: Matrix, spots: NDArray[np.intp], genes: Sequence[int]) -> NDArray[np.float32]:
    """Read expression [n, G] at some spots (ascending) and genes, in blocks of rows: float32 [m, g]."""
    values = np.empty((len(spots), len(genes)), np.float32)
    rows = max(1, BLOCK_BYTES // (8 * expression.shape[1]))
    columns = np.asarray(genes)
    for start in range(0, expression.shape[0], rows):
        first, last = np.searchsorted(spots, (start, start + rows))
        if first < last:
            block = np.asarray(expression[start : start + rows])
            values[first:last] = block[spots[first:last] - start][:, columns]
    return values
