"""Coordinate transformations of an element of a SpatialData store, as affine maps of (x, y).

The metadata follow NGFF's draft for transformations in the dialect that spatialdata writes: identity, scale,
translation, affine, rotation, mapAxis, sequence and byDimension, each with named axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_DEPTH = 8
XY = ("x", "y")

Axes = tuple[str, ...]
Affine = tuple[NDArray[np.float64], Axes, Axes]
"""(matrix [out + 1, in + 1], input axes, output axes)."""


def coordinate_systems(transformations: Any, axes: Axes) -> dict[str, NDArray[np.float64]]:
    """Maps of an element's (x, y) to each coordinate system it is in.

    Parameters
    ----------
    transformations : list of dict
        `coordinateTransformations` of the element's metadata.
    axes : tuple of str
        The element's axes, for transformations that do not name theirs.

    Returns
    -------
    dict of str to ndarray of float64, shape (3, 3)
        Coordinate system → the matrix for (x, y, 1).

    Raises
    ------
    ValueError
        If one is damaged, unknown, or mixes x and y with other axes.
    """
    systems = {}
    for item in transformations:
        matrix, source, target = _affine(item, axes, 0)
        systems[str(item["output"]["name"])] = _of_xy(matrix, source, target)
    return systems


def _of_xy(matrix: NDArray[np.float64], source: Axes, target: Axes) -> NDArray[np.float64]:
    rows = [target.index(name) for name in XY] + [len(target)]
    columns = [source.index(name) for name in XY] + [len(source)]
    others = [index for index in range(len(source)) if index not in columns]
    if matrix[np.ix_(rows, others)].any():
        raise ValueError("a transformation mixes x and y with other axes")
    result = matrix[np.ix_(rows, columns)]
    if not np.isfinite(result).all() or abs(np.linalg.det(result)) < 1e-12:
        raise ValueError("a transformation has no inverse")
    return result


def _affine(item: Any, axes: Axes, depth: int) -> Affine:
    if depth > MAX_DEPTH:
        raise ValueError(f"transformations nest deeper than {MAX_DEPTH}")
    source = _axes(item.get("input")) or axes
    target = _axes(item.get("output")) or source
    kind, count = item["type"], len(source)
    matrix = np.eye(count + 1)
    if kind == "scale":
        matrix[:count, :count] = np.diag(_numbers(item["scale"], count))
        target = source
    elif kind == "translation":
        matrix[:count, count] = _numbers(item["translation"], count)
        target = source
    elif kind == "rotation":
        matrix[:count, :count] = _numbers(item["rotation"], count * count).reshape(count, count)
    elif kind == "affine":
        values = _numbers(item["affine"], len(target) * (count + 1))
        matrix = np.vstack([values.reshape(len(target), count + 1), np.eye(count + 1)[-1:]])
    elif kind == "mapAxis":
        matrix = np.zeros((len(target) + 1, count + 1))
        matrix[-1, -1] = 1
        for row, name in enumerate(target):
            matrix[row, source.index(item["mapAxis"][name])] = 1
    elif kind == "sequence":
        target = source
        for step in item["transformations"]:
            following, inner, outer = _affine(step, target, depth + 1)
            matrix = following @ _reorder(inner, target) @ matrix
            target = outer
    elif kind == "byDimension":
        matrix = _by_dimension(item, source, target, depth)
    elif kind != "identity":
        raise ValueError(f"{str(kind)[:40]} is no known transformation")
    return matrix, source, target


def _by_dimension(item: Any, source: Axes, target: Axes, depth: int) -> NDArray[np.float64]:
    matrix = np.zeros((len(target) + 1, len(source) + 1))
    matrix[-1, -1] = 1
    for step in item["transformations"]:
        part, inner, outer = _affine(step, source, depth + 1)
        rows = [target.index(name) for name in outer]
        columns = [source.index(name) for name in inner] + [len(source)]
        matrix[np.ix_(rows, columns)] = part[:-1]
    return matrix


def _reorder(wanted: Axes, given: Axes) -> NDArray[np.float64]:
    """Take the wanted axes of homogeneous coordinates over the given ones."""
    rows = [given.index(name) for name in wanted] + [len(given)]
    return np.eye(len(given) + 1)[rows]


def _axes(system: Any) -> Axes:
    return tuple(str(axis["name"]) for axis in system["axes"]) if isinstance(system, dict) else ()


def _numbers(values: Sequence[Any], count: int) -> NDArray[np.float64]:
    numbers = np.asarray(values, np.float64).ravel()
    if len(numbers) != count:
        raise ValueError(f"a transformation has {len(numbers)} numbers for {count}")
    return numbers
