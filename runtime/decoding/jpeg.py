"""Strict decoding of the JPEG streams in slides.

libjpeg fills what it cannot decode with gray and only warns. Here every warning is an error, so that a
damaged tile is never taken for tissue. Pixels equal those of Pillow and OpenSlide: libjpeg-turbo's accurate
DCT and fancy upsampling.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

from mclst.runtime.decoding.batch import Header

SOI = b"\xff\xd8"
EOI = b"\xff\xd9"
APP0, APP14, SOS = 0xE0, 0xEE, 0xDA
NOT_A_FRAME = {0xC4, 0xC8, 0xCC}
COLOR_SPACES = {1: "GRAY", 3: "RGB", 4: "CMYK"}

AS_IS, YCBCR = 0, 1
"""Values of Adobe's color transform: samples are RGB or gray already; samples are YCbCr."""


class Frame(NamedTuple):
    """A JPEG's frame header."""

    width: int
    height: int
    components: int
    bits: int


def read_frame(data: bytes) -> Frame:
    """Read size, number of components and bits per sample; ValueError if there is no frame header."""
    return _frame_of(data, _segments(data))


def _frame_of(data: bytes, segments: list[tuple[int, int, int]]) -> Frame:
    for marker, start, end in segments:
        if 0xC0 <= marker <= 0xCF and marker not in NOT_A_FRAME:
            if end - start < 10:
                break
            height, width = (int.from_bytes(data[i : i + 2], "big") for i in (start + 5, start + 7))
            return Frame(width, height, data[start + 9], data[start + 4])
    raise ValueError("it is not a JPEG stream with a frame header")


def read_rgb_frame(data: bytes) -> Frame | None:
    """Read the frame header of a JPEG file of three colors; None if it has others.

    Raises ValueError if its headers are damaged, or it is of a kind that `decode_jpeg` does not take.
    """
    frame = read_frame(data)
    simplejpeg.decode_jpeg_header(data, strict=True)
    return frame if (frame.components, frame.bits) == (3, 8) else None


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG file to uint8 [h, w, 3] (RGB), [h, w, 1] (gray) or [h, w, 4] (CMYK).

    Raises ValueError if it is damaged or truncated, or does not have 8 bits per sample.
    """
    return _decode(data, read_frame(data))


def _decode(data: bytes, frame: Frame) -> NDArray[np.uint8]:
    if frame.bits != 8:
        raise ValueError(f"it has {frame.bits} bits per sample, where 8 are needed")
    if frame.components not in COLOR_SPACES:
        raise ValueError(f"it has {frame.components} color components")
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data, colorspace=COLOR_SPACES[frame.components], strict=True
    )
    return pixels


class StreamDecoder:
    """Decodes the streams of one level, which may lack their tables or their header.

    Most writers begin all streams of a level with the same header, so it is parsed once.
    """

    def __init__(
        self, *, transform: int, tables: bytes | None, header: bytes | None, largest: tuple[int, int]
    ) -> None:
        """Set up the decoder of a level.

        transform: `YCBCR` or `AS_IS`, from the TIFF's photometric tag; overrides the streams.
        tables: the JPEGTables tag, if quantization and Huffman tables are stored once.
        header: of NDPI, to prepend to each restart interval.
        largest: maximal (width, height) of a stream, px.
        """
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
        segments = _segments(tables) if tables is not None else []
        # The TIFF tag decides on the color transform: APP0 and APP14 of the file would contradict ours.
        parts = [(tables or b"")[a:b] for marker, a, b in segments if marker not in (APP0, APP14)]
        self._prefix = b"".join([SOI, adobe, *parts])
        self._header = header
        self._largest = largest
        self._parsed: tuple[bytes, bytes, Frame] | None = None

    @property
    def has_intervals(self) -> bool:
        """Whether streams are restart intervals of NDPI, which lack their header."""
        return self._header is not None

    @property
    def header(self) -> Header | None:
        """The header of the stream decoded last; None before the first."""
        parsed = self._parsed
        return None if parsed is None else Header(parsed[0], parsed[1])

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """Decode a stream to uint8 [h, w, 3] (RGB), [h, w, 1] (gray) or [h, w, 4] (CMYK).

        Raises ValueError if it is damaged, or declares a larger picture than allowed.
        """
        if self._header is not None:
            # An interval ends with its restart marker (RST0 to RST7) where a whole stream has EOI.
            if len(data) >= 2 and data[-2] == 0xFF and 0xD0 <= data[-1] <= 0xD7:
                data = data[:-2]
            data = self._header + (data if data.endswith(EOI) else data + EOI)
        # Threads share this without a lock: the tuple is replaced as a whole, and any of them is right for
        # its bytes.
        parsed = self._parsed
        if parsed is None or not data.startswith(parsed[0]):
            parsed = self._parsed = self._parse_header(data)
        header, full_header, frame = parsed
        return _decode(full_header + data[len(header) :], frame)

    def _parse_header(self, data: bytes) -> tuple[bytes, bytes, Frame]:
        """A stream's header, the same with tables and our color transform, and its frame."""
        if not data.startswith(SOI):
            raise ValueError("it does not start as a JPEG stream does")
        segments = _segments(data)
        frame = _frame_of(data, segments)
        if frame.width > self._largest[0] or frame.height > self._largest[1]:
            raise ValueError(f"its JPEG stream declares {frame.width} x {frame.height} px")
        parts = [data[a:b] for marker, a, b in segments if marker not in (APP0, APP14)]
        return data[: segments[-1][2]], b"".join([self._prefix, *parts]), frame


def _segments(data: bytes) -> list[tuple[int, int, int]]:
    """(marker, start, end) of each segment, up to and including the first scan header."""
    segments = []
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0xD9:
            break
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if end > len(data):
            break
        segments.append((marker, position, end))
        if marker == SOS:
            break
        position = end
    return segments
