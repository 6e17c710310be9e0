"""Slides read by OpenSlide: MIRAX, DICOM, Leica SCN, Ventana BIF, …; needs the extra `mclst[openslide]`."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageCms

from mclst.runtime.decoding.color import UNREADABLE, profile_name
from mclst.runtime.errors import SlideError
from mclst.runtime.slide.base import Level, Slide, TileReadError
from mclst.runtime.slide.metadata import check_mpp, parse_power
from mclst.sections.errors import pass_out_of_memory

DEFAULT_SEGMENT_PX = 256


def open_with_openslide(path: Path, kind: str) -> OpenSlideSlide:
    """Open a slide with OpenSlide; `kind` names its format if OpenSlide is missing."""
    try:
        import openslide
    except ImportError as exc:
        raise SlideError(
            f"{path} ({kind}) needs OpenSlide, which is not installed; pip install 'mclst[openslide]'"
        ) from exc
    try:
        handle = openslide.OpenSlide(path)
    except openslide.OpenSlideError as exc:
        raise SlideError(f"OpenSlide cannot open {path} ({exc}); check that the file is whole") from exc
    return OpenSlideSlide(path, openslide, handle)


class OpenSlideSlide(Slide):
    """A slide read by OpenSlide; transparent areas show the slide's background color.

    OpenSlide addresses every level in level-0 pixels. If a level's downsample is not an integer, a rectangle
    may therefore be off by up to half a level-0 pixel.
    """

    def __init__(self, path: Path, openslide: Any, handle: Any) -> None:
        properties = dict(handle.properties)
        levels = []
        for i, ((width, height), downsample) in enumerate(
            zip(handle.level_dimensions, handle.level_downsamples, strict=True)
        ):
            segment = [
                int(properties.get(f"openslide.level[{i}].tile-{side}", DEFAULT_SEGMENT_PX))
                for side in ("width", "height")
            ]
            levels.append(Level(width, height, float(downsample), (segment[0], segment[1])))
        mpp, source = _mpp(properties)
        super().__init__(
            path,
            reader="openslide",
            vendor=properties.get("openslide.vendor", "unknown"),
            levels=tuple(levels),
            mpp=mpp,
            mpp_source=source,
            icc=_icc(handle),
            objective=parse_power(properties.get("openslide.objective-power"), "OpenSlide objective power"),
        )
        left, top = (int(properties.get(f"openslide.bounds-{axis}", 0)) for axis in "xy")
        self.border_px = (left, top)
        background = int(properties.get("openslide.background-color", "FFFFFF"), 16)
        self._background = np.array([background >> 16, background >> 8 & 255, background & 255], np.uint16)
        self._openslide = openslide
        self._handle = handle
        self._lock = Lock()

    def _read_inside(self, pixels: NDArray[np.uint8], x: int, y: int, level: int) -> None:
        handle = self._handle
        if handle is None:
            raise SlideError(f"{self.path} is closed; open it again to read from it")
        downsample = self.levels[level].downsample
        height, width, _ = pixels.shape
        box = ((round(x * downsample), round(y * downsample)), level, (width, height))
        try:
            image = handle.read_region(*box)
        except self._openslide.OpenSlideError:
            image = self._reopen_and_read(handle, box, x, y)
        pixels[:] = self._on_background(np.asarray(image))

    def _reopen_and_read(self, failed: Any, box: tuple[Any, ...], x: int, y: int) -> Any:
        """Retry with a new handle: OpenSlide refuses a handle for good after an error in any thread."""
        with self._lock:
            try:
                fresh = self._openslide.OpenSlide(self.path)
                image = fresh.read_region(*box)
            except self._openslide.OpenSlideError as exc:
                try:
                    fresh = self._openslide.OpenSlide(self.path)
                except self._openslide.OpenSlideError as gone:
                    raise SlideError(
                        f"{self.path} can no longer be opened ({gone}); check the file"
                    ) from gone
                pass_out_of_memory(exc)
                raise TileReadError(
                    f"{self.path}: the tile at x {x}, y {y} of level {box[1]} fails: {exc}"
                ) from exc
            finally:
                if self._handle is failed:
                    self._handle = fresh
            return image

    def _on_background(self, rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
        alpha = rgba[..., 3:].astype(np.uint16)
        if alpha.min() == 255:
            return np.ascontiguousarray(rgba[..., :3])
        mixed = rgba[..., :3] * alpha + self._background * (255 - alpha)
        return ((mixed + 127) // 255).astype(np.uint8)

    def close(self) -> None:
        """Release the handle, which closes after the last read in other threads."""
        self._handle = None


def _icc(handle: Any) -> str:
    try:
        profile = getattr(handle, "color_profile", None)
    except ImageCms.PyCMSError:
        return UNREADABLE
    return "" if profile is None else profile_name(profile.tobytes())


def _mpp(properties: dict[str, str]) -> tuple[tuple[float, float] | None, str]:
    try:
        x, y = (float(properties[f"openslide.mpp-{axis}"].replace(",", ".")) for axis in "xy")
    except (KeyError, ValueError):
        return None, "the file says none"
    return check_mpp(x, y, "OpenSlide mpp")
