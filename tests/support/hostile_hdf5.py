"""Ways to make an HDF5 file lead out of itself, never end, or declare what it does not hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import h5py

Change = Callable[[h5py.File, str, Path], None]


def _replace(file: h5py.File, name: str) -> tuple[tuple[int, ...], str, dict[str, object]]:
    """Remove an object; return the shape, data type and attributes for the one to put there."""
    old = file[name]
    shape, dtype = (
        ((3,), "u1") if isinstance(old, h5py.Group) or old.dtype.kind == "O" else (old.shape, old.dtype)
    )
    attributes = {key: old.attrs[key] for key in old.attrs}
    del file[name]
    return shape or (1,), dtype, attributes


def external_link(file: h5py.File, name: str, other: Path) -> None:
    del file[name]
    file[name] = h5py.ExternalLink(str(other), name)


def soft_link(file: h5py.File, name: str, other: Path) -> None:
    file.move(name, "moved")
    file[name] = h5py.SoftLink("/moved")


def external_storage(file: h5py.File, name: str, other: Path) -> None:
    shape, dtype, attributes = _replace(file, name)
    size = math.prod(shape) * h5py.h5t.py_create(dtype).get_size()
    data = file.create_dataset(name, shape, dtype, external=[(str(other), 0, size)])
    data.attrs.update(attributes)


def virtual(file: h5py.File, name: str, other: Path) -> None:
    shape, dtype, attributes = _replace(file, name)
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource(str(other), name, shape)
    file.create_virtual_dataset(name, layout).attrs.update(attributes)


def holds_itself(file: h5py.File, name: str, other: Path) -> None:
    file[f"{file[name].parent.name}/again"] = file[name].parent


def doubles(file: h5py.File, name: str, other: Path) -> None:
    """Each group holds the next one twice."""
    group = file.require_group("uns/mclst/doubles")
    for _ in range(30):
        group["b"] = group.create_group("a")
        group = group["a"]


def many_links(file: h5py.File, name: str, other: Path) -> None:
    """One empty group under a thousand names, each of which holds a thousand names of another."""
    outer, inner, last = (file.create_group(f"uns/mclst/{level}") for level in ("outer", "inner", "last"))
    for number in range(1000):
        outer[str(number)], inner[str(number)] = inner, last


def huge(file: h5py.File, name: str, other: Path) -> None:
    shape, _, attributes = _replace(file, name)
    data = file.create_dataset(name, (10**9, *shape[1:]), "f8", chunks=(1000, *shape[1:]), compression="gzip")
    data.attrs.update(attributes)


def huge_element(file: h5py.File, name: str, other: Path) -> None:
    attributes = _replace(file, name)[2]
    file.create_dataset(name, (3,), "S1000000000").attrs.update(attributes)


LEADS_OUT: dict[str, Change] = {
    change.__name__: change for change in (external_link, soft_link, external_storage, virtual)
}
ENDLESS: dict[str, Change] = {change.__name__: change for change in (holds_itself, doubles, many_links)}
HUGE: dict[str, Change] = {change.__name__: change for change in (huge, huge_element)}
