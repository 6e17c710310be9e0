"""JPEG and PNG pictures, decoded once: whole, or of a JPEG the blocks that will be read."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from mclst.runtime.decoding import jpeg
from mclst.runtime.decoding.blocks import Blocks, Unusual, can_keep_blocks, keep_blocks, marked_blocks
from mclst.runtime.decoding.color import profile_name
from mclst.runtime.errors import MclstError, ResourceError, SlideError
from mclst.runtime.slide.base import MAX_DECODED_PX, WHITE, Level, Slide, is_bomb
from mclst.runtime.storage.files import ByteFile
from mclst.sections.errors import is_out_of_memory
from mclst.sections.location import SlideLocation

SEGMENT_ROWS = 256
MAX_FILE_BYTES = 4 << 30
T = TypeVar("T")


class Encoded(NamedTuple):
    """A JPEG that is not decoded yet: the file's bytes, its size in px and its ICC profile."""

    data: bytes
    width: int
    height: int
    profile: bytes | None


class PictureSlide(Slide):
    """A slide of one level, decoded in memory.

    picture: pixels uint8 [h, w, 3], or what is decoded once it is read, or by `decode`.
    """

    def __init__(
        self,
        path: SlideLocation,
        kind: str,
        picture: NDArray[np.uint8] | Encoded,
        icc: str,
        file: ByteFile,
    ) -> None:
        self._encoded = picture if isinstance(picture, Encoded) else None
        self._pixels = None if isinstance(picture, Encoded) else picture
        if isinstance(picture, Encoded):
            width, height = picture.width, picture.height
        else:
            height, width, _ = picture.shape
        level = Level(width, height, 1.0, (width, min(height, SEGMENT_ROWS)))
        super().__init__(path, reader="pillow", vendor=kind, levels=(level,), icc=icc)
        self._file = file
        self._lock = Lock()
        self._marked: NDArray[np.bool_] | None = None
        self._overview_px: int | None = None
        self._blocks: Blocks | None = None
        self._refusal: MclstError | None = None
        self._closed = False

    @property
    def seconds_file(self) -> float:
        """Seconds to read the whole file."""
        return self._file.seconds

    @property
    def is_pending(self) -> bool:
        """See Slide."""
        return self._pixels is None and self._blocks is None

    def expect(self, corners: NDArray[np.int64], side: int, level: int) -> None:
        """See Slide; what is announced before the first read is decoded with it, and nothing else kept."""
        if self.is_pending and len(corners):
            marked = marked_blocks((self.width_px, self.height_px), corners, side)
            with self._lock:
                self._marked = marked if self._marked is None else self._marked | marked

    def expect_overview(self, max_px: int) -> None:
        """See Slide."""
        self._overview_px = max(max_px, self._overview_px or 0)

    def decode(self) -> None:
        """See Slide."""
        with self._lock:
            if self.is_pending:
                self._decode(whole=self._marked is None and self._overview_px is None)

    def _decode(self, *, whole: bool) -> None:
        """Decode all of the picture, or keep what is marked; the caller holds the lock."""
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)
        encoded = self._encoded
        if self._closed or encoded is None:
            raise self._is_closed()
        start = time.perf_counter()
        try:
            if whole or not self._keep_blocks(encoded):
                self._pixels = _decoded(self.path, "JPEG", lambda: jpeg.decode_jpeg(encoded.data))
                self._blocks = self._encoded = None
        except MclstError as error:
            self._refusal = error
            raise
        finally:
            self.seconds_opening += time.perf_counter() - start
            if self._closed:
                self.close()  # again: what was decoded meanwhile is not kept

    def _keep_blocks(self, encoded: Encoded) -> bool:
        """Return whether the stream is decoded without any complaint."""
        size, reduced, longest = (self.width_px, self.height_px), None, self._overview_px
        if longest is not None:
            reduced = self._reduced_size(longest)
        marked = self._marked
        if marked is None:
            marked = marked_blocks(size, np.empty((0, 2), np.int64), 1)
        try:
            blocks, overview = keep_blocks(encoded.data, size, marked, reduced)
        except (Unusual, MemoryError):
            return False
        if overview is not None and reduced is not None:
            self._overview = overview, max(reduced) / max(size)
        self._blocks = blocks
        return True

    def _whole(self) -> NDArray[np.uint8]:
        """All pixels, decoded now if they were not kept."""
        if self._closed:
            raise self._is_closed()
        pixels = self._pixels
        if pixels is None:
            with self._lock:
                if self._pixels is None:
                    self._decode(whole=True)
                pixels = self._pixels
        if pixels is None:
            raise self._is_closed()
        return pixels

    def _read_inside(self, pixels: NDArray[np.uint8], x: int, y: int, level: int) -> None:
        if self.is_pending and not self._closed:
            self.decode()
        blocks = self._blocks
        if self._closed or blocks is None or not blocks.read(pixels, x, y):
            height, width, _ = pixels.shape
            pixels[:] = self._whole()[y : y + height, x : x + width]

    def _rows_in_memory(self, top: int, bottom: int, level: int) -> NDArray[np.uint8] | None:
        return self._whole()[top:bottom]

    def _is_closed(self) -> SlideError:
        return SlideError(f"{self.path} is closed; open it again to read from it")

    def close(self) -> None:
        """Free the pixels."""
        self._closed = True
        self._pixels = self._blocks = self._encoded = None
        self._file.close()


def open_picture(
    path: SlideLocation, kind: str, file: ByteFile, *, lazy: bool = False, background: int = WHITE
) -> PictureSlide:
    """Decode a JPEG or PNG ("jpeg" or "png") to RGB, ignoring EXIF orientation.

    Gray and CMYK are converted, transparency is composited on the gray level `background`. lazy: of a JPEG of
    three colors, read only the header. Raises SlideError if the picture is damaged, truncated or has 16 bits
    per channel; ResourceError beyond `MAX_DECODED_PX`.
    """

    def open_it() -> tuple[NDArray[np.uint8] | Encoded, bytes | None]:
        if file.size > MAX_FILE_BYTES:
            raise ResourceError(
                f"{path} has {file.size:,} bytes, more than a picture; save it as a tiled TIFF"
            )
        data = file.read_all()
        if kind == "png":
            return _decode_png(path, data, background)
        encoded = _encoded(path, data) if lazy and can_keep_blocks() else None
        return _decode_jpeg(path, data) if encoded is None else (encoded, encoded.profile)

    picture, profile = _decoded(path, kind.upper(), open_it)
    return PictureSlide(path, kind, picture, profile_name(profile), file)


def _decoded(path: SlideLocation, kind: str, decode: Callable[[], T]) -> T:
    """Return what `decode` does; SlideError or ResourceError whatever it raises."""
    try:
        return decode()
    except MclstError:
        raise
    except Exception as exc:  # the codecs raise ValueError, OSError, SyntaxError, zlib.error, struct.error, …
        if is_out_of_memory(exc):
            raise ResourceError(f"{path} does not fit in memory; save it as a tiled TIFF") from exc
        reason = " ".join(str(exc).split())[:200]
        raise SlideError(f"{path} is a damaged or incomplete {kind} ({reason}); copy it again") from exc


def _encoded(path: SlideLocation, data: bytes) -> Encoded | None:
    """Read a JPEG's header; None if it must be decoded to tell what it is, or what is wrong."""
    try:
        frame = jpeg.read_rgb_frame(data)
        profile = JpegImagePlugin.JpegImageFile(io.BytesIO(data)).info.get("icc_profile")
    except Exception:  # noqa: BLE001 - said by decoding
        return None
    if frame is None:
        return None
    _refuse_huge(path, frame.width, frame.height, len(data))
    return Encoded(data, frame.width, frame.height, profile)


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


def _decode_png(path: SlideLocation, data: bytes, background: int) -> Decoded:
    from PIL import PngImagePlugin

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
        behind = Image.new("RGBA", rgba.size, (background, background, background, 255))
        return np.array(Image.alpha_composite(behind, rgba).convert("RGB")), profile
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
