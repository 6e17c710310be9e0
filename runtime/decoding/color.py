"""Convert the colors of slides to RGB, and name their ICC profiles."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PREMULTIPLIED, STRAIGHT = 1, 2
"""TIFF ExtraSamples: kind of the alpha channel; any other value is not transparency."""
MAX_NAME_LENGTH = 80
UNREADABLE = "unreadable"

CHROMA = np.arange(256) - 128.0
FIXED = 1 << 16
# ITU-T T.871 in 16-bit fixed point; one half for rounding is added once per color.
RED_CR = np.trunc(1.402 * FIXED * CHROMA + FIXED // 2).astype(np.int32)
GREEN_CB = np.trunc(-0.34414 * FIXED * CHROMA).astype(np.int32)
GREEN_CR = np.trunc(-0.71414 * FIXED * CHROMA + FIXED // 2).astype(np.int32)
BLUE_CB = np.trunc(1.772 * FIXED * CHROMA + FIXED // 2).astype(np.int32)


def composite(rgba: NDArray[np.uint8], alpha: int, background: int) -> NDArray[np.uint8]:
    """Composite uint8 [h, w, 4] on a gray to uint8 [h, w, 3]; drop a fourth channel that is not alpha."""
    color, opacity = rgba[..., :3], rgba[..., 3:].astype(np.uint16)
    if alpha == STRAIGHT:
        mixed: NDArray[np.uint8] = ((color * opacity + background * (255 - opacity) + 127) // 255).astype(
            np.uint8
        )
        return mixed
    if alpha == PREMULTIPLIED:
        summed: NDArray[np.uint8] = np.minimum(color + background * (255 - opacity) // 255, 255).astype(
            np.uint8
        )
        return summed
    return np.array(color)


def cmyk_to_rgb(cmyk: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert uint8 [h, w, 4], 255 full ink, to RGB uint8 [h, w, 3] as (1 - ink)(1 - black)."""
    height, width, _ = cmyk.shape
    return np.array(
        Image.frombytes("CMYK", (width, height), np.ascontiguousarray(cmyk).tobytes()).convert("RGB")
    )


def ycbcr_to_rgb(ycc: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert full-range YCbCr uint8 [h, w, 3] to RGB (ITU-T T.871), with OpenSlide's rounding."""
    y, cb, cr = (ycc[..., i] for i in range(3))
    shifts = (RED_CR[cr], GREEN_CB[cb] + GREEN_CR[cr], BLUE_CB[cb])
    rgb = np.stack([y + (shift >> 16) for shift in shifts], axis=-1)
    clipped: NDArray[np.uint8] = np.clip(rgb, 0, 255).astype(np.uint8)
    return clipped


def jpeg2000_decodes_to_ycbcr(data: bytes) -> bool:
    """Whether decoding a JPEG 2000 stream of YCbCr leaves it YCbCr.

    The decoder itself converts subsampled chroma (ISO/IEC 15444-1, SIZ marker) and follows the color box of a
    JP2 file.
    """
    # SOC and SIZ: a bare codestream, not a JP2 file. Bytes 40-41: components; then 3 bytes each, the second
    # XRsiz.
    if not data.startswith(b"\xff\x4f\xff\x51"):
        return False
    components = int.from_bytes(data[40:42], "big")
    return components == 3 and all(data[42 + 3 * i + 1] == 1 for i in range(3))


def profile_name(profile: bytes | None) -> str:
    """Describe an ICC profile in its own words: "" if there is none, "unreadable" if it is damaged."""
    if not profile:
        return ""
    from PIL import ImageCms  # loads slowly, and most files have no profile

    try:
        description = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return UNREADABLE
    name = "".join(letter for letter in " ".join(description.split()) if letter.isprintable())
    return name[:MAX_NAME_LENGTH] or "unnamed"
