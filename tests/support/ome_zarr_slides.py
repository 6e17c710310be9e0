"""OME-Zarr slides by independent writers: ome-zarr-py for the image, zarr for each layout of an array."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from synthetic_slides import tissue

MPP = 0.5


def pyramid(levels: int = 3) -> list[NDArray[np.uint8]]:
    """RGB uint8 [h, w, 3] of each level."""
    image = tissue()
    return [np.ascontiguousarray(image[:: 2**level, :: 2**level]) for level in range(levels)]


def described(axes: str) -> list[dict[str, str]]:
    kinds = {"t": "time", "c": "channel"}
    return [
        {"name": axis, "type": kinds.get(axis, "space")} | ({"unit": "micrometer"} if axis in "zyx" else {})
        for axis in axes
    ]


def as_axes(image: NDArray[np.uint8], axes: str) -> NDArray[np.uint8]:
    """[h, w, 3] → the order of `axes`, with length 1 for those it lacks."""
    rgb = image.transpose(["yxc".index(axis) for axis in axes if axis in "yxc"])
    return np.ascontiguousarray(
        rgb.reshape([image.shape["yxc".index(axis)] if axis in "yxc" else 1 for axis in axes])
    )


def scales(axes: str, levels: int) -> list[list[dict[str, Any]]]:
    return [
        [{"type": "scale", "scale": [MPP * 2**level if axis in "yx" else 1.0 for axis in axes]}]
        for level in range(levels)
    ]


def write_by_ome_zarr(
    path: Path, version: str, axes: str = "cyx", chunk: int = 64, levels: int = 3, **options: Any
) -> None:
    """Write a slide with ome-zarr-py."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls what it deprecates itself
        import zarr
        from ome_zarr.format import format_from_version
        from ome_zarr.writer import write_multiscale

        form = format_from_version(version)
        write_multiscale(
            [as_axes(image, axes) for image in pyramid(levels)],
            zarr.open_group(path, mode="w", zarr_format=form.zarr_format),
            fmt=form,
            axes=described(axes),
            coordinate_transformations=scales(axes, levels),
            storage_options={"chunks": tuple(chunk if axis in "yx" else 1 for axis in axes), **options},
        )


def write_by_zarr(
    path: Path, zarr_format: int, *, axes: str = "cyx", levels: int = 1, attributes: Any = None, **array: Any
) -> None:
    """Write a slide's arrays with zarr, and OME metadata by the letter of its specification."""
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=2 if zarr_format == 2 else 3)
    for level, image in enumerate(pyramid(levels)):
        data = as_axes(image, axes)
        written = group.create_array(str(level), shape=data.shape, dtype=data.dtype, **array)
        written[...] = data
    multiscales = [
        {
            "axes": described(axes),
            "datasets": [
                {"path": str(level), "coordinateTransformations": steps}
                for level, steps in enumerate(scales(axes, levels))
            ],
            **({"version": "0.4"} if zarr_format == 2 else {}),
        }
    ]
    ome = {"multiscales": multiscales, **(attributes or {})}
    group.attrs.update(ome if zarr_format == 2 else {"ome": {"version": "0.5", **ome}})


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; a field named `a__b` is `b` of `a`."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        at = content
        *parents, last = name.split("__")
        for parent in parents:
            at = at[int(parent)] if isinstance(at, list) else at[parent]
        at[int(last) if isinstance(at, list) else last] = value
    path.write_text(json.dumps(content))
