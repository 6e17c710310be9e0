"""Colour as TIFF tiles hold it, made RGB."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

PREMULTIPLIED, STRAIGHT = 1, 2
"""TIFF ExtraSamples: what the fourth channel is; any other value is not transparency."""


def over_white(rgba: NDArray[np.uint8], alpha: int) -> NDArray[np.uint8]:
    """Lay uint8 [h, w, 4] over white, uint8 [h, w, 3]; a fourth channel of another meaning is dropped."""
    color, opacity = rgba[..., :3], rgba[..., 3:].astype(np.uint16)
    if alpha == STRAIGHT:
        mixed: NDArray[np.uint8] = ((color * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
        return mixed
    if alpha == PREMULTIPLIED:
        summed: NDArray[np.uint8] = np.minimum(color + (255 - opacity), 255).astype(np.uint8)
        return summed
    return np.array(color)


def cmyk_to_rgb(cmyk: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert uint8 [h, w, 4], 255 full ink, to RGB uint8 [h, w, 3]: (1 - ink)(1 - black), without a profile."""
    height, width, _ = cmyk.shape
    return np.array(
        Image.frombytes("CMYK", (width, height), np.ascontiguousarray(cmyk).tobytes()).convert("RGB")
    )


CHROMA = np.arange(256) - 128.0
FIXED = 1 << 16
# ITU-T T.871 in 16-bit fixed point; the half that rounds is added once per colour.
RED_CR = np.trunc(1.402 * FIXED * CHROMA + FIXED // 2).astype(np.int32)
GREEN_CB = np.trunc(-0.34414 * FIXED * CHROMA).astype(np.int32)
GREEN_CR = np.trunc(-0.71414 * FIXED * CHROMA + FIXED // 2).astype(np.int32)
BLUE_CB = np.trunc(1.772 * FIXED * CHROMA + FIXED // 2).astype(np.int32)


def ycbcr_to_rgb(ycc: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert full-range YCbCr uint8 [h, w, 3] to RGB (ITU-T T.871), with OpenSlide's rounding."""
    y, cb, cr = (ycc[..., i] for i in range(3))
    shifts = (RED_CR[cr], GREEN_CB[cb] + GREEN_CR[cr], BLUE_CB[cb])
    rgb = np.stack([y + (shift >> 16) for shift in shifts], axis=-1)
    clipped: NDArray[np.uint8] = np.clip(rgb, 0, 255).astype(np.uint8)
    return clipped


def ycbcr_of_jpeg2000(data: bytes) -> bool:
    """Whether a JPEG 2000 codestream that holds YCbCr is still YCbCr once decoded.

    The decoder converts by itself where the chroma is subsampled (ISO/IEC 15444-1, SIZ marker), and obeys the
    colour box of a JP2 file.
    """
    if not data.startswith(b"\xff\x4f\xff\x51"):
        return False
    components = int.from_bytes(data[40:42], "big")
    return components == 3 and all(data[42 + 3 * i + 1] == 1 for i in range(3))


LONGEST_NAME = 80
UNREADABLE = "unreadable"


def profile_name(profile: bytes | None) -> str:
    """Name an ICC profile by its own description: "" where there is none, "unreadable" where it is damaged."""
    if not profile:
        return ""
    try:
        said = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return UNREADABLE
    name = "".join(letter for letter in " ".join(said.split()) if letter.isprintable())
    return name[:LONGEST_NAME] or "unnamed"
