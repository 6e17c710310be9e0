"""Convert names, columns, the spots table and nested settings to what a `.h5ad` can store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.sections.columns import Columns
from mclst.sections.section import Spots


def storable_text(value: object) -> str:
    """`value` as text HDF5 can hold: NUL and undecodable bytes become the replacement character."""
    text = str(value)
    if text.isascii() and "\0" not in text:
        return text  # the same object: copies of ten million names would take a gigabyte
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def storable_names(
    names: Iterable[object], *, reserved: Sequence[str] = (), unnamed: str = "column"
) -> list[str]:
    """Column names or keys that HDF5 and anndata accept, unique, none of `reserved`, in the order of `names`.

    `/` becomes `_`, an empty name `<unnamed>_<number>`, `_index` becomes `index`; a name in use gets `_2`,
    `_3`, …
    """
    original = list(names)
    valid = []
    for number, name in enumerate(original, start=1):
        text = storable_text(name).replace("/", "_").strip()
        default = f"{unnamed}_{number}"
        valid.append({"": default, ".": default, "_index": "index"}.get(text, text))
    used = set(reserved)
    result = [""] * len(valid)
    # Valid names first, so that only changed names give way in a clash.
    for i in sorted(range(len(valid)), key=lambda i: valid[i] != original[i]):
        name, number = valid[i], 1
        while name in used:
            number += 1
            name = f"{valid[i]}_{number}"
        used.add(name)
        result[i] = name
    return result


def storable_column(column: NDArray[Any]) -> NDArray[Any]:
    """A column [n] of a table, unchanged if numeric, else as text with "" for missing values."""
    if column.dtype.kind in "biu" or (column.dtype.kind == "f" and column.dtype.itemsize <= 8):
        return column
    if all(type(cell) is str for cell in column):
        return text_array(column)
    import pandas as pd  # where such a table comes from

    inferred = pd.Series(column).infer_objects()
    if inferred.dtype.kind in "biuf" and column.dtype.kind == "O":
        return inferred.to_numpy()
    return text_array("" if absent else cell for cell, absent in zip(inferred, inferred.isna(), strict=True))


def text_array(values: Iterable[object]) -> NDArray[np.object_]:
    """Names or cells [n] as text."""
    return np.array([storable_text(value) for value in values], dtype=object)


def spots_table(spots: Spots, *, reserved: Sequence[str]) -> Columns:
    """The spots table [n rows] as `obs`, indexed by spot ids, without the column names in `reserved`.

    `array_row` and `array_col` are added if the table has them under other names.
    """
    names = storable_names(spots.columns, reserved=reserved)
    columns = {
        name: storable_column(column) for name, column in zip(names, spots.columns.values(), strict=True)
    }
    if spots.array_xy is not None:
        columns.setdefault("array_row", spots.array_xy[:, 1])
        columns.setdefault("array_col", spots.array_xy[:, 0])
    return Columns(text_array(spots.id.tolist()), columns)


def storable_tree(value: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a nested mapping to dicts, scalars, text and arrays, sorted as HDF5 lists them; drop None.

    A list of one scalar type becomes an array, any other list JSON text; paths become text.
    Raises TypeError, naming the key, for a value of any other type.
    """
    items = {key: item for key, item in value.items() if item is not None}
    names = storable_names(items, unnamed="key")
    stored = [_storable_value(key, item) for key, item in items.items()]
    return dict(sorted(zip(names, stored, strict=True)))


def _storable_value(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return storable_tree(value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf":
            return value
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, str | int | PurePath):
        return storable_text(value)
    if isinstance(value, list | tuple):
        return _storable_list(key, value)
    raise TypeError(f"{key} is a {type(value).__name__}, which a .h5ad cannot hold")


def _storable_list(key: str, value: Sequence[Any]) -> Any:
    kinds = {type(item) for item in value}
    if kinds == {str}:
        return np.array([storable_text(item) for item in value], dtype=object)
    if len(kinds) == 1 and kinds <= {bool, int, float}:
        array = np.array(value)
        if array.dtype.kind in "biuf":
            return array
    try:
        return storable_text(json.dumps(value, ensure_ascii=False, default=str))
    except ValueError as error:
        raise TypeError(f"{key} is a list that a .h5ad cannot hold ({error})") from error
