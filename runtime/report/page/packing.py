"""Bytes as a page carries them, and values as whole numbers."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.report.figures.colors import usual_limits

FINE, MIDDLE = 65535, 255
"""Values of a gene that two bytes and one tell apart, beside an unknown one."""
Place = tuple[int, int]
"""Of a block in the packed text: start and length, in letters."""


@dataclass
class Packed:
    """Blocks of bytes, each squeezed by zlib and written in base64, one after the other."""

    text: list[str] = field(default_factory=list)
    length: int = 0

    def add(self, content: bytes) -> Place:
        """Append a block; where it stands."""
        return self.add_squeezed(zlib.compress(content, 9))

    def add_squeezed(self, stream: bytes) -> Place:
        """Append a block that is a zlib stream already."""
        letters = base64.b64encode(stream).decode("ascii")
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

    def bytes(self) -> bytes:
        """The codes, least byte first."""
        return self.codes.astype(self.codes.dtype.newbyteorder("<")).tobytes()


def encode(values: NDArray[np.floating], levels: int) -> Codes:
    """Values [n], NaN where unknown, to `levels` whole numbers, none off by more than half a step."""
    found = np.asarray(values, np.float64)
    known = np.isfinite(found)
    low, high = (float(found[known].min()), float(found[known].max())) if known.any() else (0.0, 0.0)
    step = (high - low) / (levels - 1)
    codes: NDArray[np.uint16] | NDArray[np.uint8]
    codes = np.zeros(len(found), np.uint16) if levels > MIDDLE else np.zeros(len(found), np.uint8)
    codes[known] = 1 + (np.rint((found[known] - low) / step) if step > 0 else 0)
    return Codes(codes, low, step, usual_limits(found[known]))
