"""Cells of a table to numbers: all of a column, or the first cell at fault by line and name."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.sections.errors import SectionError
from mclst.sections.tables.delimited import Table, joined, text_array

NUMBER = re.compile(r"[ \t]*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?[ \t]*", re.ASCII)
PLAIN_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", re.ASCII)
NUMBER_CHARACTERS = frozenset("0123456789+-.eE \t")
WHOLE_CHARACTERS = frozenset("0123456789-")
LONGEST_WHOLE = 18  # characters; more may not fit int64
FLAGS = {
    "1": True,
    "1.0": True,
    "true": True,
    "t": True,
    "0": False,
    "0.0": False,
    "false": False,
    "f": False,
}
LARGEST = 1e9  # px or array steps; far beyond any slide, and every whole number below is exact in float64
LONGEST_ID = 256


def numbers(table: Table, column: int, unit: str) -> NDArray[np.float64]:
    """Give a column as float64 [n].

    Raises SectionError naming line and column where a cell is blank, text, NaN, infinite or beyond ±1e9.
    """
    cells = table.columns[column]
    values = cells.astype(np.float64) if cells.dtype.kind in "iuf" else _parsed(table, column, unit)
    wrong = ~(np.abs(values) <= LARGEST)
    if wrong.any():
        raise _bad_cell(table, column, int(np.argmax(wrong)), unit)
    return values


def whole_numbers(table: Table, column: int, unit: str) -> NDArray[np.int64]:
    """Give a column as int64 [n]; 101.0 is a whole number, 10.1 raises SectionError with its line."""
    values = numbers(table, column, unit)
    wrong = values != np.floor(values)
    if wrong.any():
        raise _bad_cell(table, column, int(np.argmax(wrong)), f"a whole number, {unit}")
    return values.astype(np.int64)


def flags(table: Table, column: int) -> NDArray[np.bool_]:
    """Give a column of 0 and 1 (or true and false) as bool [n]; SectionError with the line of anything else."""
    found = np.empty(len(table), np.bool_)
    for rows in table.pieces():
        texts = [text.strip().casefold() for text in table.texts(column, rows)]
        for index, text in enumerate(texts):
            if text not in FLAGS:
                raise _bad_cell(table, column, rows.start + index, "0 or 1")
        found[rows] = [FLAGS[text] for text in texts]
    return found


def identifiers(table: Table, column: int) -> NDArray[np.str_]:
    """Give a column of names as text [n], untouched but for surrounding spaces; blank ones are refused."""
    parts = []
    for rows in table.pieces():
        texts = [text.strip() for text in table.texts(column, rows)]
        if table.columns[column].dtype.kind not in "SU":
            missing = pd.isna(table.columns[column][rows])
            texts = ["" if gone else text for text, gone in zip(texts, missing, strict=True)]
        for index, text in enumerate(texts):
            if not text or len(text) > LONGEST_ID:
                what = f"has a name of {len(text)} characters" if text else "has no name"
                raise SectionError(
                    f"{table.at(rows.start + index)}: the spot {what}; give each spot a short name of its own"
                )
        parts.append(text_array(texts))
    return joined(parts).astype(np.str_)


def require_unique(table: Table, ids: NDArray[np.str_]) -> None:
    """Raise SectionError naming both lines where an id stands twice."""
    hashes = np.empty(len(ids), np.uint64)
    for rows in table.pieces():
        hashes[rows] = pd.util.hash_array(ids[rows].astype(object), categorize=False)
    ordered = np.sort(hashes)
    twice = np.flatnonzero(np.isin(hashes, ordered[1:][ordered[1:] == ordered[:-1]]))
    order = twice[np.argsort(ids[twice], kind="stable")]
    same = ids[order[1:]] == ids[order[:-1]]
    if not same.any():
        return
    first, second = (int(index) for index in order[np.argmax(same) :][:2])
    raise SectionError(
        f"{table.at(second)}: spot {str(ids[first])!r} stands in {table.unit} {table.row[first]} already; "
        "a spot may appear once"
    )


def typed(table: Table, column: int) -> NDArray[Any]:
    """Give a column of text its natural type [n]: int64 or float64 where every cell is a plainly written number, else text.

    007 and blank cells keep a column text.
    """
    for dtype, of in ((np.int64, _whole), (np.float64, _plain)):
        found = np.empty(len(table), dtype)
        for rows in table.pieces():
            values = of(table.texts(column, rows))
            if values is None:
                break
            found[rows] = values
        else:
            return found
    return as_objects(table, column)


def as_objects(table: Table, column: int) -> NDArray[np.object_]:
    """Give a column of text as Python strings [n]."""
    found = np.empty(len(table), dtype=object)
    for rows in table.pieces():
        found[rows] = table.texts(column, rows)
    return found


def _whole(texts: list[str]) -> list[int] | None:
    """Whole numbers that are written as they would be again; None where one is not."""
    if max(map(len, texts)) > LONGEST_WHOLE or not set("".join(texts)) <= WHOLE_CHARACTERS:
        return None
    try:
        values = [int(text) for text in texts]
    except ValueError:
        return None
    return values if list(map(str, values)) == texts else None


def _plain(texts: list[str]) -> list[float] | None:
    if not set("".join(texts)) <= NUMBER_CHARACTERS or not all(map(PLAIN_NUMBER.fullmatch, texts)):
        return None
    return [float(text) for text in texts]


def _parsed(table: Table, column: int, unit: str) -> NDArray[np.float64]:
    values = np.empty(len(table), np.float64)
    for rows in table.pieces():
        texts = table.texts(column, rows)
        # float() also reads 1_000, １２ and nan; these characters leave plain numbers alone
        if set("".join(texts)) <= NUMBER_CHARACTERS:
            with contextlib.suppress(ValueError):
                values[rows] = [float(text) for text in texts]
                continue
        wrong = next(index for index, text in enumerate(texts) if not NUMBER.fullmatch(text))
        raise _bad_cell(table, column, rows.start + wrong, unit)
    return values


def _bad_cell(table: Table, column: int, index: int, unit: str) -> SectionError:
    text = table.texts(column, slice(index, index + 1))[0].strip()
    shown = text if len(text) <= 40 else f"{text[:40]}…"
    what = f"is {shown!r}" if text else "is blank"
    hint = ", decimals with a point" if re.fullmatch(r"[-+]?[\d.]+,\d+", text) else ""
    return SectionError(f"{table.at(index)}: column {table.names[column]!r} {what}; give {unit}{hint}")
