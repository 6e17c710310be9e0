"""JPEG streams as slides hold them, decoded strictly.

libjpeg fills what it cannot decode with grey and only warns. Here every such warning is an error, so that a
damaged tile is never mistaken for tissue. Pixels equal libjpeg-turbo's defaults (accurate DCT, fancy
upsampling), as Pillow and OpenSlide give them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

SOI = b"\xff\xd8"
EOI = b"\xff\xd9"
APP0, APP14, SOS = 0xE0, 0xEE, 0xDA
NOT_A_FRAME = {0xC4, 0xC8, 0xCC}

AS_IS, YCBCR = 0, 1
"""Adobe's colour transform: samples are RGB (or gray) already; samples are YCbCr."""


class Frame(NamedTuple):
    """What a JPEG's frame header says."""

    width: int
    height: int
    components: int
    bits: int


def read_frame(data: bytes) -> Frame:
    """Read size, number of components and bits per sample; ValueError where there is no frame header."""
    for marker, start, end in _segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in NOT_A_FRAME:
            if end - start < 10:
                break
            height, width = (int.from_bytes(data[i : i + 2], "big") for i in (start + 5, start + 7))
            return Frame(width, height, data[start + 9], data[start + 4])
    raise ValueError("it is not a JPEG stream with a frame header")


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decode a whole JPEG file to uint8 [h, w, 3], [h, w, 1] where gray, [h, w, 4] where CMYK.

    Raises ValueError where it is damaged, cut short, or has other than 8 bits per sample.
    """
    frame = read_frame(data)
    if frame.bits != 8:
        raise ValueError(f"it has {frame.bits} bits per sample, where 8 are needed")
    colours = {1: "GRAY", 3: "RGB", 4: "CMYK"}
    if frame.components not in colours:
        raise ValueError(f"it has {frame.components} colour components")
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data, colorspace=colours[frame.components], strict=True
    )
    return pixels


def decode_segment(
    data: bytes, *, transform: int, tables: bytes | None = None, header: bytes | None = None
) -> NDArray[np.uint8]:
    """Decode one tile or strip of a TIFF to uint8 [h, w, 3] or [h, w, 1].

    transform: `YCBCR` or `AS_IS`, as the TIFF's photometric tag says; it outweighs what the stream says.
    tables: the JPEGTables tag, where quantization and Huffman tables are kept apart.
    header: NDPI: the header that belongs before each restart interval.

    Raises ValueError where the stream is damaged.
    """
    if header is not None:
        if len(data) >= 2 and data[-2] == 0xFF and 0xD0 <= data[-1] <= 0xD7:
            data = data[:-2]
        data = header + data if data.endswith(EOI) else header + data + EOI
    return decode_jpeg(_whole(data, transform, tables))


def _whole(data: bytes, transform: int, tables: bytes | None) -> bytes:
    """Join tables and stream into one file, with the colour transform said once, by an Adobe marker."""
    if not data.startswith(SOI):
        raise ValueError("it does not start as a JPEG stream does")
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    parts = [SOI, adobe]
    if tables is not None:
        parts += [tables[a:b] for marker, a, b in _segments(tables) if marker not in (APP0, APP14)]
    end = 2
    for marker, a, b in _segments(data):
        if marker == SOS:
            break
        if marker not in (APP0, APP14):
            parts.append(data[a:b])
        end = b
    parts.append(data[end:])
    return b"".join(parts)


def _segments(data: bytes) -> list[tuple[int, int, int]]:
    """List (marker, start, end) of the segments up to and with the first scan header."""
    found = []
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xD9:
            break
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end > len(data):
            break
        found.append((marker, at, end))
        if marker == SOS:
            break
        at = end
    return found
