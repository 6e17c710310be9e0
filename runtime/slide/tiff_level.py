"""One level of a TIFF slide: find its tiles or strips in the file and decode them to RGB."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tifffile import COMPRESSION, PHOTOMETRIC, TIFF, TiffFrame, TiffPage

from mclst.runtime.decoding import jpeg
from mclst.runtime.decoding.batch import Decoded, Key, Layout, can_decode, decode_segments, layout
from mclst.runtime.decoding.color import (
    cmyk_to_rgb,
    composite,
    jpeg2000_decodes_to_ycbcr,
    ycbcr_to_rgb,
)
from mclst.runtime.errors import MclstError, ResourceError, SlideError
from mclst.runtime.slide.base import MAX_DECODED_PX, WHITE, is_bomb
from mclst.runtime.slide.segmented_slide import SegmentedLevel
from mclst.runtime.storage.files import ByteFile, SharedFile

NONE, OLD_JPEG, APERIO_J2K_YCBCR = 1, 6, 33003
JPEG = {7, 33007, 34892}
JPEG2000 = {33003, 33004, 33005, 34712}
DECODES_TO_RGB = {50001, 34927, 50002, 52546}
MIN_IS_WHITE, MIN_IS_BLACK, RGB, SEPARATED, YCBCR = 0, 1, 2, 5, 6
CMYK_INKS = 1
ROW_BLOCK_BYTES = 1 << 20
MOST_BATCHED_BYTES = 4 << 20
"""Larger segments are decoded one by one, since a batch holds all of its own at once."""


class RefusedLevel(Exception):
    """Why a level cannot be read; kind: the error to raise if the level is needed."""

    def __init__(self, reason: str, kind: type[MclstError] = SlideError) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class TiffLevel(SegmentedLevel[ByteFile]):
    """Location and encoding of a level's segments (TIFF tiles or strips).

    planes: 1 if samples are interleaved, else the number of planes.
    samples: per pixel. offsets, counts: int64 [planes * rows * columns], bytes.
    row_bytes: length of a row if all rows are uncompressed and contiguous from offsets[0] on; else 0.
    blank_is_white: whether the vendor stores empty glass as a segment without bytes.
    """

    planes: int
    samples: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    row_bytes: int
    blank_is_white: bool
    compression: int
    photometric: int
    alpha: int
    jpeg_decoder: jpeg.StreamDecoder
    tiff_decode: Callable[..., Any]
    background: int = WHITE

    def expect(self, source: ByteFile, keys: NDArray[np.int64]) -> None:
        """Announce segments; see SegmentedLevel."""
        source.expect(self._ranges(keys))

    def prefetch(self, source: ByteFile, keys: NDArray[np.int64]) -> None:
        """Read segments together; see SegmentedLevel."""
        source.prefetch(self._ranges(keys))

    def _ranges(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of segments [n, 2] (column, row): [n, 2] (offset, count)."""
        column, row = keys[:, 0], keys[:, 1]
        if self.row_bytes:
            step = self.segment_height * self.row_bytes
            heights = np.minimum(self.segment_height, self.height - row * self.segment_height)
            return np.stack([int(self.offsets[0]) + row * step, heights * self.row_bytes], axis=1)
        planes = np.arange(self.planes)[:, None] * (self.rows * self.columns)
        indexes = (planes + row * self.columns + column).ravel()
        return np.stack([self.offsets[indexes], self.counts[indexes]], axis=1)

    def decode(self, source: ByteFile, column: int, row: int) -> NDArray[np.uint8]:
        """Decode a segment; see SegmentedLevel."""
        height = min(self.segment_height, self.height - row * self.segment_height)
        width = min(self.segment_width, self.width - column * self.segment_width)
        if self.row_bytes:
            return self._rgb(self._uncompressed_rows(source, row, height), b"")
        first = row * self.columns + column
        step = self.rows * self.columns
        parts = []
        data = b""
        for index in range(first, first + self.planes * step, step):
            data = self._bytes(source, index)
            if not data and self.blank_is_white:
                return np.full((height, width, 3), 255, np.uint8)
            parts.append(self._decode(data, index, width, height))
        return self._rgb(parts[0] if self.planes == 1 else np.concatenate(parts, axis=2), data)

    def decodes_many(self, source: ByteFile) -> bool:
        """See SegmentedLevel; JPEG tiles of a local file, once their header is known."""
        return self.is_batched and isinstance(source, SharedFile) and self.jpeg_decoder.header is not None

    def decode_many(
        self, source: ByteFile, keys: Sequence[Key], spare: list[Decoded]
    ) -> Sequence[Decoded | None]:
        """See SegmentedLevel."""
        header = self.jpeg_decoder.header
        assert isinstance(source, SharedFile) and header is not None
        segments, seconds = decode_segments(source.descriptor, header, self._layout, keys, spare)
        source.add_seconds(seconds)
        return segments

    @cached_property
    def _layout(self) -> Layout:
        size, segment = (self.width, self.height), (self.segment_width, self.segment_height)
        return layout(size, segment, self.offsets, self.counts)

    @cached_property
    def is_batched(self) -> bool:
        """Whether segments are decoded many at once: small JPEG streams of three colors in one piece."""
        return (
            self.compression in JPEG
            and self.planes == 1
            and self.samples == 3
            and not self.jpeg_decoder.has_intervals
            and 3 * self.segment_width * self.segment_height <= MOST_BATCHED_BYTES
            and can_decode()
        )

    def _bytes(self, file: ByteFile, index: int) -> bytes:
        offset, count = int(self.offsets[index]), int(self.counts[index])
        if count <= 0 or offset <= 0:
            if self.blank_is_white:
                return b""
            raise ValueError("the file holds no data for it")
        data = file.read(offset, count)
        if len(data) != count:
            raise ValueError(f"the file ends {count - len(data):,} bytes before its data does")
        return data

    def _decode(self, data: bytes, index: int, width: int, height: int) -> NDArray[np.uint8]:
        if self.compression in JPEG:
            pixels = self.jpeg_decoder.decode(data)
        else:
            decoded = self.tiff_decode(data, index)[0]
            if decoded is None or decoded.dtype != np.uint8:
                raise ValueError("it does not decode to 8-bit samples")
            pixels = decoded[0]
        samples = 1 if self.planes > 1 else self.samples
        if pixels.shape[0] < height or pixels.shape[1] < width or pixels.shape[2] != samples:
            raise ValueError(f"it decodes to {pixels.shape}, where {(height, width, samples)} is needed")
        return pixels[:height, :width]

    def _uncompressed_rows(self, file: ByteFile, row: int, height: int) -> NDArray[np.uint8]:
        start = int(self.offsets[0]) + row * self.segment_height * self.row_bytes
        data = file.read(start, height * self.row_bytes)
        if len(data) != height * self.row_bytes:
            raise ValueError("the file ends before its data does")
        return np.frombuffer(data, np.uint8).reshape(height, self.width, self.samples)

    def _rgb(self, pixels: NDArray[np.uint8], data: bytes) -> NDArray[np.uint8]:
        if pixels.shape[2] == 1:
            gray = 255 - pixels if self.photometric == MIN_IS_WHITE else pixels
            return np.repeat(gray, 3, axis=2)
        if (
            self.compression in JPEG2000
            and (self.photometric == YCBCR or self.compression == APERIO_J2K_YCBCR)
            and jpeg2000_decodes_to_ycbcr(data)
        ):
            return ycbcr_to_rgb(pixels)
        if self.photometric == SEPARATED:
            return cmyk_to_rgb(pixels)
        if pixels.shape[2] == 4:
            return composite(pixels, self.alpha, self.background)
        return np.ascontiguousarray(pixels)


def read_level(
    page: TiffPage | TiffFrame, keyframe: TiffPage, file_bytes: int, *, blank_is_white: bool
) -> TiffLevel:
    """Read a level's TIFF directory; RefusedLevel if it is unsupported or its data is truncated."""
    _refuse_unsupported(keyframe)
    planes = keyframe.samplesperpixel if keyframe.planarconfig == 2 else 1
    width, height = keyframe.imagewidth, keyframe.imagelength
    segment_width, segment_height = (
        (keyframe.tilewidth, keyframe.tilelength) if keyframe.is_tiled else (width, keyframe.rowsperstrip)
    )
    if min(width, height, segment_width, segment_height) < 1:
        raise RefusedLevel(f"declares an image of {width} x {height} px; copy it again")
    needed = planes * -(-width // segment_width) * -(-height // segment_height)
    if min(len(page.dataoffsets), len(page.databytecounts)) < needed:
        raise RefusedLevel(
            f"declares {width} x {height} px but lists only {len(page.dataoffsets):,} of {needed:,} tiles; "
            "it is damaged, copy it again"
        )
    offsets = np.asarray(page.dataoffsets[:needed], np.int64)
    counts = np.asarray(page.databytecounts[:needed], np.int64)
    end = int((offsets + counts)[counts > 0].max(initial=0))
    if end > file_bytes:
        raise RefusedLevel(f"is cut off: its pixels need {end:,} bytes, it has {file_bytes:,}; copy it again")
    plain_bytes = width * height * keyframe.samplesperpixel
    if keyframe.compression == NONE and not keyframe.is_tiled and int(counts.sum()) < plain_bytes:
        raise RefusedLevel(
            f"declares {width} x {height} px, {plain_bytes:,} bytes, but lists {int(counts.sum()):,} of "
            "them; it is damaged, copy it again"
        )
    row_bytes = _row_bytes(keyframe, offsets, counts)
    if row_bytes:
        # Contiguous rows can be cut anywhere, so a single huge strip is read in blocks.
        segment_height = min(height, max(1, ROW_BLOCK_BYTES // row_bytes))
    if min(segment_width, width) * min(segment_height, height) > MAX_DECODED_PX or (
        segment_width * segment_height > MAX_DECODED_PX
    ):
        raise RefusedLevel(
            f"must be decoded in one piece of {segment_width} x {segment_height} px, "
            f"more than {MAX_DECODED_PX:,}; save it as a tiled TIFF",
            ResourceError,
        )
    smallest = int(counts[counts > 0].min(initial=np.iinfo(np.int64).max))
    if keyframe.compression != NONE and is_bomb(
        segment_width * segment_height, keyframe.samplesperpixel, smallest
    ):
        raise RefusedLevel(
            f"would unpack {segment_width} x {segment_height} px from {smallest:,} bytes, as no picture of "
            "tissue does; refused"
        )
    keyframe.init_decode()
    return TiffLevel(
        width=width,
        height=height,
        segment_width=segment_width,
        segment_height=segment_height,
        planes=planes,
        samples=keyframe.samplesperpixel,
        offsets=offsets,
        counts=counts,
        row_bytes=row_bytes,
        blank_is_white=blank_is_white,
        compression=int(keyframe.compression),
        photometric=int(keyframe.photometric),
        alpha=int((*keyframe.extrasamples, 0)[0]),
        jpeg_decoder=jpeg.StreamDecoder(
            transform=jpeg.YCBCR if keyframe.photometric == YCBCR else jpeg.AS_IS,
            tables=page.jpegtables,
            header=keyframe.jpegheader,
            largest=(segment_width, segment_height),
        ),
        tiff_decode=keyframe.decode,
    )


def _row_bytes(page: TiffPage, offsets: NDArray[np.int64], counts: NDArray[np.int64]) -> int:
    """Bytes of a row if all rows are uncompressed and contiguous; else 0."""
    row = page.imagewidth * page.samplesperpixel
    plain = (
        page.compression == NONE and page.predictor == 1 and page.planarconfig == 1 and page.fillorder == 1
    )
    contiguous = bool((offsets[1:] == offsets[:-1] + counts[:-1]).all())
    full = int(offsets[0]) > 0 and bool((counts[:-1] == page.rowsperstrip * row).all())
    return row if plain and contiguous and full and not page.is_tiled else 0


def _refuse_unsupported(page: TiffPage) -> None:
    """Refuse, by name, what does not decode to the RGB of an H&E slide."""
    reason = _unsupported(page)
    if reason:
        raise RefusedLevel(f"{reason}; mclst reads 8-bit RGB or gray, export it as such")


def _unsupported(page: TiffPage) -> str | None:
    samples, photometric, compression = page.samplesperpixel, page.photometric, page.compression
    kinds = {1: "unsigned", 2: "signed", 3: "floating-point"}
    if page.dtype is None or page.dtype != np.uint8:
        return f"has {page.bitspersample}-bit {kinds.get(page.sampleformat, 'unknown')} samples"
    if page.imagedepth > 1:
        return f"is a volume of {page.imagedepth} planes"
    if photometric == SEPARATED and samples == 4 and page.tags.valueof("InkSet", CMYK_INKS) == CMYK_INKS:
        return _undecodable(compression)
    if photometric not in (MIN_IS_WHITE, MIN_IS_BLACK, RGB, YCBCR):
        return f"has {_name(PHOTOMETRIC, photometric)} colors"
    color = photometric in (RGB, YCBCR)
    if samples not in ((3, 4) if color else (1,)):
        return f"has {samples} samples per pixel ({_name(PHOTOMETRIC, photometric)})"
    if samples == 4 and (compression in JPEG or photometric == YCBCR):
        return "has a fourth channel besides RGB"
    if photometric == YCBCR and compression not in JPEG | JPEG2000 | DECODES_TO_RGB:
        return f"has YCbCr colors under {_name(COMPRESSION, compression)} compression"
    return _undecodable(compression)


def _undecodable(compression: int) -> str | None:
    # JPEG is decoded here, the rest by tifffile.
    if compression == NONE or compression in JPEG:
        return None
    if compression == OLD_JPEG or compression not in TIFF.DECOMPRESSORS:
        return f"is compressed with {_name(COMPRESSION, compression)}"
    return None


def _name(kind: type[COMPRESSION | PHOTOMETRIC], value: int) -> str:
    try:
        return f"{kind(value).name} ({int(value)})"
    except ValueError:
        return f"code {value}"
