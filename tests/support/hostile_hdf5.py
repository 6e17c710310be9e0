"""Ways to make an HDF5 file lead out of itself, never end, or declare what it does not hold."""

from __future__ import annotations

import contextlib
import math
import random
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


def removed(file: h5py.File, name: str, other: Path) -> None:
    del file[name]


def swapped(file: h5py.File, name: str, other: Path) -> None:
    """Another object under its name."""
    del file[name]
    file[name] = next(iter(file.values()))


def without_attributes(file: h5py.File, name: str, other: Path) -> None:
    for key in list(file[name].attrs):
        del file[name].attrs[key]


def odd_attribute(file: h5py.File, name: str, other: Path) -> None:
    attributes = file[name].attrs
    key, *_ = attributes
    attributes[key] = [b"/X", b"", b"obs"]


def empty(file: h5py.File, name: str, other: Path) -> None:
    attributes = _replace(file, name)[2]
    file.create_dataset(name, data=h5py.Empty("f4")).attrs.update(attributes)


def other_shape(file: h5py.File, name: str, other: Path) -> None:
    shape, dtype, attributes = _replace(file, name)
    file.create_dataset(name, (shape[0] + 1, *shape), dtype).attrs.update(attributes)


def other_type(file: h5py.File, name: str, other: Path) -> None:
    shape, _, attributes = _replace(file, name)
    file.create_dataset(name, shape, [("a", "i4"), ("b", "S3")]).attrs.update(attributes)


DAMAGED: dict[str, Change] = {
    change.__name__: change
    for change in (removed, swapped, without_attributes, odd_attribute, empty, other_shape, other_type)
}


def damage(path: Path, other: Path, chance: random.Random) -> bool:
    """Change one to three objects; whether the file now leads out of itself."""
    leads_out = False
    with h5py.File(path, "r+") as file:
        for _ in range(chance.choice((1, 1, 2, 3))):
            names: list[str] = []
            file.visit(names.append)
            (changes,) = chance.choices((LEADS_OUT, HUGE, ENDLESS, DAMAGED), (30, 20, 3, 47))
            change = chance.choice(sorted(changes))
            name = chance.choice(names)
            with contextlib.suppress(ValueError, KeyError, OSError, RuntimeError, TypeError, IndexError):
                changes[change](file, name, other)
                leads_out |= changes is LEADS_OUT
            if changes is not DAMAGED:
                break
    return leads_out
