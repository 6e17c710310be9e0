"""Cells of a table to numbers: all of a column, or the first cell at fault by line and name."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.sections.delimited import Table
from mclst.sections.section import SectionError

NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)
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
    texts = [str(cell).strip().casefold() for cell in table.columns[column].tolist()]
    for index, text in enumerate(texts):
        if text not in FLAGS:
            raise _bad_cell(table, column, index, "0 or 1")
    return np.fromiter((FLAGS[text] for text in texts), dtype=np.bool_, count=len(texts))


def identifiers(table: Table, column: int) -> NDArray[np.str_]:
    """Give a column of names as text [n], untouched but for surrounding spaces; blank ones are refused."""
    cells = table.columns[column]
    texts = [
        str(cell).strip()
        for cell in (cells if cells.dtype.kind == "U" else np.where(pd.isna(cells), "", cells)).tolist()
    ]
    for index, text in enumerate(texts):
        if not text or len(text) > LONGEST_ID:
            what = f"has a name of {len(text)} characters" if text else "has no name"
            raise SectionError(f"{table.at(index)}: the spot {what}; give each spot a short name of its own")
    return np.array(texts, dtype=np.str_)


def require_unique(table: Table, ids: NDArray[np.str_]) -> None:
    """Raise SectionError naming both lines where an id stands twice."""
    if len(set(ids.tolist())) == len(ids):
        return
    order = np.argsort(ids, kind="stable")
    same = ids[order[1:]] == ids[order[:-1]]
    first, second = (int(index) for index in order[np.argmax(same) :][:2])
    raise SectionError(
        f"{table.at(second)}: spot {str(ids[first])!r} stands in {table.unit} {table.row[first]} already; "
        "a spot may appear once"
    )


def typed(cells: NDArray[Any]) -> NDArray[Any]:
    """Give a column its natural type: int64 or float64 where every cell is a plainly written number, else text.

    007 and blank cells keep a column text.
    """
    if cells.dtype.kind not in "UO":
        return cells
    texts = cells.tolist()
    if cells.dtype.kind == "O" and not all(isinstance(text, str) for text in texts):
        return cells
    used = set("".join(texts))
    if used <= WHOLE_CHARACTERS and all(texts) and max(map(len, texts)) <= LONGEST_WHOLE:
        with contextlib.suppress(ValueError):
            whole = cells.astype(np.int64)
            return whole if (whole.astype(np.str_) == cells).all() else cells.astype(object)
    if used <= NUMBER_CHARACTERS and all(map(PLAIN_NUMBER.fullmatch, texts)):
        return cells.astype(np.float64)
    return cells.astype(object)


def _parsed(table: Table, column: int, unit: str) -> NDArray[np.float64]:
    texts = [str(cell) for cell in table.columns[column].tolist()]
    # float() also reads 1_000, １２ and nan; these characters leave plain numbers alone
    if set("".join(texts)) <= NUMBER_CHARACTERS:
        with contextlib.suppress(ValueError):
            return np.fromiter(map(float, texts), dtype=np.float64, count=len(texts))
    wrong = next(index for index, text in enumerate(texts) if not NUMBER.fullmatch(text))
    raise _bad_cell(table, column, wrong, unit)


def _bad_cell(table: Table, column: int, index: int, unit: str) -> SectionError:
    text = str(table.columns[column][index]).strip()
    shown = text if len(text) <= 40 else f"{text[:40]}…"
    what = f"is {shown!r}" if text else "is blank"
    hint = ", decimals with a point" if re.fullmatch(r"[-+]?[\d.]+,\d+", text) else ""
    return SectionError(f"{table.at(index)}: column {table.names[column]!r} {what}; give {unit}{hint}")
