"""Expression and coordinates as a page carries them: whole numbers, squeezed, in base64."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import h5py
import numpy as np
from numpy.typing import NDArray

from mclst.runtime.structure import BLOCK_BYTES

FINE, MIDDLE, COARSE = 65535, 255, 31
"""Steps of a gene's range in a page."""
MOST_FINE, MOST_MIDDLE = 1_000_000, 8_000_000
"""Values (spots x genes) up to which a page has so many. Above, steps are as fine as the noise of a prediction allows:
on 12,000 embeddings near real ones (k = 50 and 200), what no 32 components of all genes explain was 4 to 7 % of a gene's
range, and one step is 3 %, whose own error is 0.9 %."""
Place = tuple[int, int]
"""Of a block in the packed text: start and length, in letters."""


@dataclass
class Packed:
    """Blocks of bytes, each squeezed by zlib and written in base64, one after the other."""

    text: list[str] = field(default_factory=list)
    length: int = 0

    def add(self, content: bytes) -> Place:
        """Append a block; where it stands."""
        letters = base64.b64encode(zlib.compress(content, 9)).decode("ascii")
        place = self.length, len(letters)
        self.text.append(letters)
        self.length += len(letters)
        return place


@dataclass(frozen=True)
class Codes:
    """Values of one gene, n spots: value = low + (code - 1) · step, code 0 unknown.

    codes: uint16 or uint8 [n]. limits: 1st and 99th percentile of the known values, as colours run.
    """

    codes: NDArray[np.uint16] | NDArray[np.uint8]
    low: float
    step: float
    limits: tuple[float, float]


def steps_for(values: int) -> int:
    """How finely a page with so many values holds them."""
    return FINE if values <= MOST_FINE else MIDDLE if values <= MOST_MIDDLE else COARSE


def encode(values: NDArray[np.floating], levels: int) -> Codes:
    """Values [n], NaN where unknown, to `levels` whole numbers, none off by more than half a step."""
    found = np.asarray(values, np.float64)
    known = np.isfinite(found)
    low, high = (float(found[known].min()), float(found[known].max())) if known.any() else (0.0, 0.0)
    step = (high - low) / (levels - 1)
    codes: NDArray[np.uint16] | NDArray[np.uint8]
    codes = np.zeros(len(found), np.uint16) if levels > MIDDLE else np.zeros(len(found), np.uint8)
    codes[known] = 1 + (np.rint((found[known] - low) / step) if step > 0 else 0)
    limits = np.percentile(found[known], [1, 99]) if known.any() else (0.0, 1.0)
    return Codes(codes, low, step, (float(limits[0]), float(limits[1])))


def encode_genes(
    expression: NDArray[np.float32] | h5py.Dataset, places: Sequence[int], levels: int
) -> Iterator[Codes]:
    """`encode` each gene of expression [n, G] in the order of `places`; some genes are held at a time."""
    at_once = max(1, BLOCK_BYTES // (8 * expression.shape[0]))
    for start in range(0, len(places), at_once):
        wanted = np.asarray(places[start : start + at_once])
        order = np.sort(wanted)  # HDF5 hands out columns in rising order
        block = np.asarray(expression[:, order])
        for column in np.searchsorted(order, wanted):
            yield encode(block[:, column], levels)
