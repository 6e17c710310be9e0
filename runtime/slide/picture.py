"""JPEG and PNG pictures, decoded once into memory."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin

from mclst.runtime.decoding import jpeg
from mclst.runtime.decoding.color import profile_name
from mclst.runtime.errors import MclstError, ResourceError, SlideError
from mclst.runtime.slide.base import MAX_DECODED_PX, Level, Slide, is_bomb
from mclst.runtime.storage.files import ByteFile
from mclst.sections.location import SlideLocation

SEGMENT_ROWS = 256
MAX_FILE_BYTES = 4 << 30


class PictureSlide(Slide):
    """A slide of one level, decoded in memory."""

    def __init__(
        self, path: SlideLocation, kind: str, pixels: NDArray[np.uint8], icc: str, file: ByteFile
    ) -> None:
        height, width, _ = pixels.shape
        level = Level(width, height, 1.0, (width, min(height, SEGMENT_ROWS)))
        super().__init__(path, reader="pillow", vendor=kind, levels=(level,), icc=icc)
        self._pixels: NDArray[np.uint8] | None = pixels
        self._file = file

    @property
    def seconds_file(self) -> float:
        """Seconds to read the whole file."""
        return self._file.seconds

    def _read_inside(self, pixels: NDArray[np.uint8], x: int, y: int, level: int) -> None:
        picture = self._pixels
        if picture is None:
            raise SlideError(f"{self.path} is closed; open it again to read from it")
        height, width, _ = pixels.shape
        pixels[:] = picture[y : y + height, x : x + width]

    def _rows_in_memory(self, top: int, bottom: int, level: int) -> NDArray[np.uint8] | None:
        return None if self._pixels is None else self._pixels[top:bottom]

    def close(self) -> None:
        """Free the pixels."""
        self._pixels = None
        self._file.close()


def open_picture(path: SlideLocation, kind: str, file: ByteFile) -> PictureSlide:
    """Decode a JPEG or PNG ("jpeg" or "png") to RGB, ignoring EXIF orientation.

    Gray and CMYK are converted, transparency is composited on white. Raises SlideError if the picture is
    damaged, truncated or has 16 bits per channel; ResourceError beyond `MAX_DECODED_PX`.
    """
    try:
        if file.size > MAX_FILE_BYTES:
            raise ResourceError(
                f"{path} has {file.size:,} bytes, more than a picture; save it as a tiled TIFF"
            )
        data = file.read_all()
        pixels, profile = _decode_jpeg(path, data) if kind == "jpeg" else _decode_png(path, data)
    except MclstError:
        raise
    except MemoryError as exc:
        raise ResourceError(f"{path} does not fit in memory; save it as a tiled TIFF") from exc
    except Exception as exc:  # the codecs raise ValueError, OSError, SyntaxError, zlib.error, struct.error, …
        reason = " ".join(str(exc).split())[:200]
        raise SlideError(
            f"{path} is a damaged or incomplete {kind.upper()} ({reason}); copy it again"
        ) from exc
    return PictureSlide(path, kind, pixels, profile_name(profile), file)


Decoded = tuple[NDArray[np.uint8], bytes | None]
"""Pixels and the ICC profile."""


def _decode_jpeg(path: SlideLocation, data: bytes) -> Decoded:
    frame = jpeg.read_frame(data)
    _refuse_huge(path, frame.width, frame.height, len(data))
    pixels = jpeg.decode_jpeg(data)
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    profile = image.info.get("icc_profile")
    if frame.components == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    elif frame.components == 4:
        # Decoded strictly above; Pillow knows the inverted CMYK that Adobe writes.
        pixels = np.array(image.convert("RGB"))
    return pixels, profile


def _decode_png(path: SlideLocation, data: bytes) -> Decoded:
    # The plugin itself: Image.open warns of large pictures by its own limit.
    image = PngImagePlugin.PngImageFile(io.BytesIO(data))
    _refuse_huge(path, *image.size, len(data))
    if data[12:16] != b"IHDR":
        raise ValueError("its header is not the first chunk")
    if data[24] == 16:
        raise SlideError(f"{path} has 16 bits per channel, where 8 are needed; save it as 8-bit RGB")
    image.load()
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, rgba).convert("RGB")), profile
    return np.array(image.convert("RGB")), profile


def _refuse_huge(path: SlideLocation, width: int, height: int, compressed_bytes: int) -> None:
    if is_bomb(width * height, 3, compressed_bytes):
        raise SlideError(
            f"{path} would unpack from {compressed_bytes:,} bytes to {width} x {height} px, "
            "as no picture of tissue does; refused"
        )
    if width * height > MAX_DECODED_PX:
        raise ResourceError(
            f"{path} has {width} x {height} px, more than the {MAX_DECODED_PX:,} that are decoded in one "
            "piece; save it as a tiled TIFF"
        )
