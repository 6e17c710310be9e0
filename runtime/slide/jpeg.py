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

from mclst.runtime.slide.buffer_pool import BufferPool

SOI = b"\xff\xd8"
EOI = b"\xff\xd9"
APP0, APP14, SOS = 0xE0, 0xEE, 0xDA
NOT_A_FRAME = {0xC4, 0xC8, 0xCC}
COLOURS = {1: "GRAY", 3: "RGB", 4: "CMYK"}

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
    return _frame_of(data, _segments(data))


def _frame_of(data: bytes, segments: list[tuple[int, int, int]]) -> Frame:
    for marker, start, end in segments:
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
    return _decode(data, read_frame(data))


def _decode(data: bytes, frame: Frame, into: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """into: where the pixels go, uint8 [h * w * components]; a new array if None."""
    if frame.bits != 8:
        raise ValueError(f"it has {frame.bits} bits per sample, where 8 are needed")
    if frame.components not in COLOURS:
        raise ValueError(f"it has {frame.components} colour components")
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data, colorspace=COLOURS[frame.components], strict=True, buffer=into
    )
    return pixels


class Streams:
    """The streams of one level, a tile or strip each, as slides hold them: without their tables, or their header.

    Most writers begin every stream of a level with the same bytes; what was found in them is kept for the next.
    """

    def __init__(
        self, *, transform: int, tables: bytes | None, header: bytes | None, largest: tuple[int, int]
    ) -> None:
        """Take what the level says once.

        transform: `YCBCR` or `AS_IS`, as the TIFF's photometric tag says; it outweighs what a stream says.
        tables: the JPEGTables tag, where quantization and Huffman tables are kept apart.
        header: NDPI: the header that belongs before each restart interval.
        largest: (width, height) that a stream may have, px.
        """
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
        kept = _segments(tables) if tables is not None else []
        parts = [(tables or b"")[a:b] for marker, a, b in kept if marker not in (APP0, APP14)]
        self._prefix = b"".join([SOI, adobe, *parts])
        self._header = header
        self._largest = largest
        self._known: tuple[bytes, bytes, Frame, BufferPool] | None = None

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """Decode a stream to uint8 [h, w, 3], [h, w, 1] where gray, [h, w, 4] where CMYK.

        Raises ValueError where it is damaged, or declares a picture larger than it may be.
        """
        if self._header is not None:
            if len(data) >= 2 and data[-2] == 0xFF and 0xD0 <= data[-1] <= 0xD7:
                data = data[:-2]
            data = self._header + (data if data.endswith(EOI) else data + EOI)
        known = self._known
        if known is None or not data.startswith(known[0]):
            known = self._known = self._understand(data)
        head, joined, frame, slabs = known
        return _decode(joined + data[len(head) :], frame, slabs.acquire())

    def _understand(self, data: bytes) -> tuple[bytes, bytes, Frame, BufferPool]:
        """A stream's bytes up to its pixels; the same with tables and one colour transform; what its frame says."""
        if not data.startswith(SOI):
            raise ValueError("it does not start as a JPEG stream does")
        segments = _segments(data)
        frame = _frame_of(data, segments)
        if frame.width > self._largest[0] or frame.height > self._largest[1]:
            raise ValueError(f"its JPEG stream declares {frame.width} x {frame.height} px")
        kept = [data[a:b] for marker, a, b in segments if marker not in (APP0, APP14)]
        slabs = BufferPool(frame.width * frame.height * frame.components)
        return data[: segments[-1][2]], b"".join([self._prefix, *kept]), frame, slabs


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
