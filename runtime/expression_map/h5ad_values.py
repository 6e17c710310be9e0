"""What a `.h5ad` can hold: names, columns, the spots table and nested settings, made storable."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.sections.section import Spots


def storable_text(value: object) -> str:
    """`value` as text HDF5 can hold: NUL and undecodable bytes become the replacement character."""
    text = str(value)
    if text.isascii() and "\0" not in text:
        return text  # the very object: ten million copies of names would be a gigabyte
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def storable_names(
    names: Iterable[object], *, taken: Sequence[str] = (), unnamed: str = "column"
) -> list[str]:
    """Column names or keys that HDF5 and anndata accept, unique and none of `taken`, in the given order.

    `/` becomes `_`, an empty name `<unnamed>_<place>`, `_index` becomes `index`; a name in use gets `_2`, `_3`, …
    A name that needs no change is served before one that does.
    """
    given = list(names)
    wished = []
    for place, name in enumerate(given, start=1):
        text = storable_text(name).replace("/", "_").strip()
        wished.append(
            {"": f"{unnamed}_{place}", ".": f"{unnamed}_{place}", "_index": "index"}.get(text, text)
        )
    used = set(taken)
    result = dict.fromkeys(range(len(wished)), "")
    for place in sorted(result, key=lambda i: wished[i] != given[i]):
        name, number = wished[place], 1
        while name in used:
            number += 1
            name = f"{wished[place]}_{number}"
        used.add(name)
        result[place] = name
    return list(result.values())


def storable_column(column: pd.Series[Any]) -> NDArray[Any]:
    """A table's column [n] as it is where it holds numbers, else as text; missing text is ""."""
    column = column.infer_objects()
    missing = column.isna().to_numpy()
    if isinstance(column.dtype, np.dtype):
        if column.dtype.kind in "biu" or (column.dtype.kind == "f" and column.dtype.itemsize <= 8):
            return column.to_numpy()
    elif pd.api.types.is_numeric_dtype(column.dtype):  # a masked dtype, as Int64
        if missing.any():
            return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
        return np.array(column.tolist())
    cells = [storable_text("" if gone else cell) for cell, gone in zip(column, missing, strict=True)]
    return np.array(cells, dtype=object)


def text_index(values: Iterable[object]) -> pd.Index[Any]:
    """Names [n] as the index of `obs` or `var`."""
    index: pd.Index[Any] = pd.Index(np.array([storable_text(value) for value in values], dtype=object))
    return index


def spots_table(spots: Spots, *, taken: Sequence[str]) -> pd.DataFrame:
    """The spots table [n rows] as `obs`: index the spots' ids, its own columns, none of them called as in `taken`.

    `array_row` and `array_col` are added where the table knows them under other names.
    """
    index = text_index(spots.id.tolist())
    columns: dict[str, NDArray[Any]] = {}
    for place, name in enumerate(storable_names(spots.table.columns, taken=taken)):
        columns[name] = storable_column(spots.table.iloc[:, place])
    if spots.array_xy is not None:
        columns.setdefault("array_row", spots.array_xy[:, 1])
        columns.setdefault("array_col", spots.array_xy[:, 0])
    return pd.DataFrame(columns, index=index)


def storable_tree(value: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping as anndata stores it: dicts, scalars, text and arrays; None is left out.

    A list of one plain kind becomes an array, any other list JSON text; paths become text.
    Raises TypeError naming the key of a value of any other type.
    """
    kept = {key: item for key, item in value.items() if item is not None}
    names = storable_names(kept, unnamed="key")
    return {name: _storable_value(key, item) for name, (key, item) in zip(names, kept.items(), strict=True)}


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
