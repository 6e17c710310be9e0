"""OME-Zarr images, versions 0.4 (Zarr 2) and 0.5 (Zarr 3), as slides.

https://ngff.openmicroscopy.org/0.4/ and …/0.5/.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import SlideError
from mclst.runtime.slide.metadata import UM_PER_UNIT, check_mpp
from mclst.runtime.slide.segmented_slide import SegmentedLevel, SegmentedSlide, is_reduction
from mclst.runtime.slide.zarr.array import ZarrArray
from mclst.runtime.slide.zarr.metadata import ZarrError, checked_path, read_attributes
from mclst.runtime.storage.files import ByteFolder
from mclst.sections.location import SlideLocation

MAX_LEVELS = 24
VERSIONS = ("0.4", "0.5")
RGB = ["FF0000", "00FF00", "0000FF"]
EXPORT = "export it as 8-bit RGB"


@dataclass(frozen=True)
class ZarrLevel(SegmentedLevel[ByteFolder]):
    """A level's array; axes: names of its dimensions, among them c, y and x."""

    array: ZarrArray
    axes: tuple[str, ...]

    def decode(self, source: ByteFolder, column: int, row: int) -> NDArray[np.uint8]:
        """Decode a segment; see SegmentedLevel."""
        parts = []
        for place in self._places(column, row):
            chunk = self.array.read_chunk(source, place)
            plane = chunk[tuple(slice(None) if axis in "cyx" else 0 for axis in self.axes)]
            left = [axis for axis in self.axes if axis in "cyx"]
            parts.append(plane.transpose([left.index(axis) for axis in "yxc"]))
        height = min(self.segment_height, self.height - row * self.segment_height)
        width = min(self.segment_width, self.width - column * self.segment_width)
        return np.concatenate(parts, axis=2)[:height, :width, :3].copy()

    def _places(self, column: int, row: int) -> list[list[int]]:
        """Chunks of a segment, by channel."""
        channels = self.array.metadata.chunks[self.axes.index("c")]
        return [
            [{"y": row, "x": column, "c": number}.get(axis, 0) for axis in self.axes]
            for number in range(-(-3 // channels))
        ]

    def expect(self, source: ByteFolder, keys: NDArray[np.int64]) -> None:
        """Announce segments; see SegmentedLevel."""

    def prefetch(self, source: ByteFolder, keys: NDArray[np.int64]) -> None:
        """Read segments together; see SegmentedLevel."""
        parts = []
        for column, row in keys.tolist():
            for place in self._places(column, row):
                with suppress(ValueError):  # told when it is decoded
                    parts.append(self.array.part(source, place))
        source.prefetch([part for part in parts if part is not None])


def open_ome_zarr(path: SlideLocation, folder: ByteFolder) -> SegmentedSlide[ByteFolder]:
    """Open the image of an OME-Zarr group.

    Raises SlideError if it is no 8-bit RGB image or damaged, ResourceError for enormous chunks.
    """
    try:
        image, prefix, version = _find_image(folder)
        axes = _axes(image)
        levels, scale = _levels(folder, prefix, image, axes)
    except ZarrError as error:
        raise error.kind(f"{path} {error}") from error
    except OSError as error:
        raise SlideError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise SlideError(
            f"{path} holds OME metadata that is no image's ({error!r:.80}); copy it again"
        ) from error
    mpp, source = scale
    return SegmentedSlide(
        path,
        folder,
        levels,
        named="chunk",
        reader="zarr",
        vendor=f"ome-zarr {version}",
        mpp=mpp,
        mpp_source=source,
    )


def _find_image(folder: ByteFolder) -> tuple[dict[str, Any], str, str]:
    """Find the multiscale image: (its metadata, path of its group, version)."""
    ome, version = _ome(folder, "")
    prefix = ""
    if "bioformats2raw.layout" in ome:
        # Its images are numbered; the first is the slide, the others label and photograph.
        series = (_ome(folder, "OME/")[0].get("series") if _has(folder, "OME/") else None) or ["0"]
        prefix = f"{checked_path(series[0])}/"
        ome, version = _ome(folder, prefix)
    for kind in ("plate", "well"):
        if kind in ome:
            raise ZarrError(f"is a {kind} of many images; give the folder of one image")
    images = ome.get("multiscales")
    if not isinstance(images, list) or not images:
        raise ZarrError("is a Zarr group without an OME image (multiscales); give the folder of the image")
    image = images[0]
    version = str(version or image.get("version", VERSIONS[0]))
    if not version.startswith(VERSIONS):
        raise ZarrError(f"is OME-Zarr {version[:20]}, where {' or '.join(VERSIONS)} is needed; convert it")
    _refuse_other_colors(ome)
    return image, prefix, version


def _has(folder: ByteFolder, prefix: str) -> bool:
    return read_attributes(folder, prefix) is not None


def _ome(folder: ByteFolder, prefix: str) -> tuple[dict[str, Any], str]:
    """OME metadata of a group, and its version where the group says one."""
    node = read_attributes(folder, prefix)
    if node is None:
        raise ZarrError(f"lacks its group {prefix.rstrip('/') or '.'!r}; copy it again")
    zarr_format, attributes = node
    if zarr_format == 2:
        return attributes, ""
    ome = attributes.get("ome", {})
    return ome, str(ome.get("version", ""))


def _refuse_other_colors(ome: dict[str, Any]) -> None:
    """Refuse channels that are colored otherwise than red, green and blue."""
    channels = (ome.get("omero") or {}).get("channels") or []
    colors = [str(channel.get("color", "")).lstrip("#").upper() for channel in channels]
    if len(colors) == 3 and all(colors) and colors != RGB:
        names = ", ".join(str(channel.get("label", "?"))[:20] for channel in channels)
        raise ZarrError(f"has channels {names} of other colors than red, green, blue; {EXPORT}")


def _axes(image: dict[str, Any]) -> tuple[str, ...]:
    axes = image["axes"]
    if not all(isinstance(axis, dict) for axis in axes):
        raise ZarrError(f"is OME-Zarr before {VERSIONS[0]}, whose axes are not described; convert it")
    names = tuple("c" if axis.get("type") == "channel" else str(axis["name"]).lower()[:20] for axis in axes)
    if "c" not in names:
        raise ZarrError(f"has the axes {', '.join(names)} without channels, where RGB is needed; {EXPORT}")
    if names.count("c") > 1 or [name for name in names if name in "yx"] != ["y", "x"]:
        raise ZarrError(f"has the axes {', '.join(names)}, where c, y and x are needed; {EXPORT}")
    return names


def _levels(
    folder: ByteFolder, prefix: str, image: dict[str, Any], axes: tuple[str, ...]
) -> tuple[list[ZarrLevel], tuple[tuple[float, float] | None, str]]:
    """Read the levels, finest first, and the scale; what is no reduction of level 0 is left out."""
    everywhere = image.get("coordinateTransformations") or []
    places = [
        _placed([*dataset.get("coordinateTransformations", []), *everywhere], len(axes))
        for dataset in image["datasets"][:MAX_LEVELS]
    ]
    paths = [f"{prefix}{checked_path(dataset['path'])}/" for dataset in image["datasets"][:MAX_LEVELS]]
    levels = [_level(ZarrArray(folder, paths[0]), axes)]
    full, (size, origin) = levels[0], places[0]
    for path, (_, begins) in zip(paths[1:], places[1:], strict=True):
        with suppress(ZarrError):
            level = _level(ZarrArray(folder, path), axes)
            # A crop is no level: a level begins where the slide does, or half a pixel on by pixels' centers.
            pixel = np.abs(size) * np.array(
                [
                    {"y": full.height / level.height, "x": full.width / level.width}.get(axis, 1)
                    for axis in axes
                ]
            )
            if is_reduction(full, levels[-1], level) and (np.abs(begins - origin) <= pixel).all():
                levels.append(level)
    return levels, _mpp(image["axes"], axes, size)


def _level(array: ZarrArray, axes: tuple[str, ...]) -> ZarrLevel:
    sizes, pieces = array.metadata.shape, array.metadata.chunks
    if len(sizes) != len(axes):
        raise ZarrError(f"declares {len(axes)} axes for an array of {len(sizes)}; copy it again")
    shape, chunks = dict(zip(axes, sizes, strict=True)), dict(zip(axes, pieces, strict=True))
    if shape["c"] != 3:
        raise ZarrError(f"has {shape['c']:,} channels, where the three of RGB are needed; {EXPORT}")
    for name, length in shape.items():
        if name not in "cyx" and length > 1:
            raise ZarrError(f"has {length:,} planes along {name!r}, where one image is needed; {EXPORT}")
    return ZarrLevel(shape["x"], shape["y"], chunks["x"], chunks["y"], array, axes)


def _placed(
    steps: Sequence[dict[str, Any]], dimensions: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Size and origin of a pixel after transformations, by axis."""
    size, origin = np.ones(dimensions), np.zeros(dimensions)
    for step in steps:
        if "input" in step:  # SpatialData: into a coordinate system of its own
            continue
        if step["type"] == "scale" and "scale" in step:
            factors = _numbers(step["scale"], dimensions)
            size, origin = size * factors, origin * factors
        elif step["type"] == "translation" and "translation" in step:
            origin = origin + _numbers(step["translation"], dimensions)
    return size, origin


def _numbers(values: Any, dimensions: int) -> NDArray[np.float64]:
    numbers = np.array([float(value) for value in values])
    if len(numbers) != dimensions or not np.isfinite(numbers).all():
        raise ValueError("coordinateTransformations")
    return numbers


def _mpp(
    described: Sequence[dict[str, Any]], axes: Sequence[str], size: NDArray[np.float64]
) -> tuple[tuple[float, float] | None, str]:
    """(µm per level-0 px along x and y or None, source or why not)."""
    um = []
    for name in "xy":
        axis = axes.index(name)
        unit = described[axis].get("unit")
        if unit is None:
            return None, f"the file says no unit of its axis {name!r}"
        if str(unit) not in UM_PER_UNIT:
            return None, f"the file gives its axis {name!r} in {str(unit)[:20]!r}"
        um.append(float(size[axis]) * UM_PER_UNIT[str(unit)])
    if not all(math.isfinite(value) and value > 0 for value in um):
        return None, "the file gives a scale that is not positive"
    return check_mpp(um[0], um[1], "OME-Zarr scale")
