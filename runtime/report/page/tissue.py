"""The slide's picture in a page, encoded as soon as the picture is there."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

JPEG_QUALITY = 80


@dataclass(frozen=True)
class TissueJpeg:
    """A JPEG of the whole slide, base64; scale: its px per level-0 px."""

    content: str
    width: int
    height: int
    scale: float


def encode_tissue(image: NDArray[np.uint8], scale: float) -> TissueJpeg:
    """Encode a picture uint8 [h, w, 3], RGB, of the whole slide; scale: its px per level-0 px."""
    content: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420"
    )
    height, width, _ = image.shape
    return TissueJpeg(base64.b64encode(content).decode("ascii"), width, height, scale)
