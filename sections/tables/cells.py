"""Parse table columns to numbers, flags and names; errors name line and column."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.sections.errors import SectionError
from mclst.sections.tables.delimited import Table, concatenate, pack_strings

NUMBER = re.compile(r"[ \t]*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?[ \t]*", re.ASCII)
PLAIN_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", re.ASCII)
NUMBER_CHARACTERS = frozenset("0123456789+-.eE \t")
INTEGER_CHARACTERS = frozenset("0123456789-")
MAX_INTEGER_CHARACTERS = 18  # characters; more may not fit int64
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
MAX_COORDINATE = 1e9  # px or array steps; every integer below is exact in float64
MAX_ID_CHARACTERS = 256


def numbers(table: Table, column: int, unit: str) -> NDArray[np.float64]:
    """Parse a column as float64 [n]; SectionError if a cell is blank, text, NaN, infinite or beyond ±1e9."""
    cells = table.columns[column]
    values = cells.astype(np.float64) if cells.dtype.kind in "iuf" else _parsed(table, column, unit)
    invalid = ~(np.abs(values) <= MAX_COORDINATE)
    if invalid.any():
        raise _bad_cell(table, column, int(np.argmax(invalid)), unit)
    return values


def integers(table: Table, column: int, unit: str) -> NDArray[np.int64]:
    """Parse a column as int64 [n]; 101.0 is accepted, 10.1 raises SectionError."""
    values = numbers(table, column, unit)
    invalid = values != np.floor(values)
    if invalid.any():
        raise _bad_cell(table, column, int(np.argmax(invalid)), f"a whole number, {unit}")
    return values.astype(np.int64)


def flags(table: Table, column: int) -> NDArray[np.bool_]:
    """Parse a column of 0 and 1 (or true and false) as bool [n]; SectionError for anything else."""
    result = np.empty(len(table), np.bool_)
    for rows in table.chunks():
        texts = [text.strip().casefold() for text in table.texts(column, rows)]
        for index, text in enumerate(texts):
            if text not in FLAGS:
                raise _bad_cell(table, column, rows.start + index, "0 or 1")
        result[rows] = [FLAGS[text] for text in texts]
    return result


def identifiers(table: Table, column: int) -> NDArray[np.str_]:
    """Read a column of names as text [n] without surrounding spaces; SectionError for blank or long names."""
    parts = []
    for rows in table.chunks():
        texts = [text.strip() for text in table.texts(column, rows)]
        if table.unit != "line":
            import pandas as pd  # where the table comes from

            is_missing = pd.isna(table.columns[column][rows])
            texts = ["" if na else text for text, na in zip(texts, is_missing, strict=True)]
        for index, text in enumerate(texts):
            if not text or len(text) > MAX_ID_CHARACTERS:
                problem = f"has a name of {len(text)} characters" if text else "has no name"
                raise SectionError(
                    f"{table.location(rows.start + index)}: the spot {problem}; "
                    "give each spot a short, unique name"
                )
        parts.append(pack_strings(texts))
    return concatenate(parts).astype(np.str_)


def require_unique(table: Table, ids: NDArray[np.str_]) -> None:
    """Raise SectionError if an id appears twice; both lines are named."""
    hashes = np.empty(len(ids), np.int64)
    for rows in table.chunks():
        hashes[rows] = [hash(text) for text in ids[rows].tolist()]
    # Sorting hashes takes less memory than sorting the strings; only ids with equal hashes are compared.
    ordered = np.sort(hashes)
    candidates = np.flatnonzero(np.isin(hashes, ordered[1:][ordered[1:] == ordered[:-1]]))
    order = candidates[np.argsort(ids[candidates], kind="stable")]
    same = ids[order[1:]] == ids[order[:-1]]
    if not same.any():
        return
    first, second = (int(index) for index in order[np.argmax(same) :][:2])
    raise SectionError(
        f"{table.location(second)}: spot {str(ids[first])!r} is in {table.unit} {table.row[first]} already; "
        "a spot may appear once"
    )


def infer_type(table: Table, column: int) -> NDArray[Any]:
    """Convert a text column [n] to int64 or float64 if every cell is a canonical number, else to strings.

    Cells such as 007, and blank ones, keep the column text.
    """
    for dtype, parse in ((np.int64, _integers), (np.float64, _plain_floats)):
        result = np.empty(len(table), dtype)
        for rows in table.chunks():
            values = parse(table.texts(column, rows))
            if values is None:
                break
            result[rows] = values
        else:
            return result
    return as_strings(table, column)


def as_strings(table: Table, column: int) -> NDArray[np.object_]:
    """Read a text column as Python strings [n]."""
    result = np.empty(len(table), dtype=object)
    for rows in table.chunks():
        result[rows] = table.texts(column, rows)
    return result


def _integers(texts: list[str]) -> list[int] | None:
    """Integers that survive a round trip through int; None if one does not."""
    if max(map(len, texts)) > MAX_INTEGER_CHARACTERS or not set("".join(texts)) <= INTEGER_CHARACTERS:
        return None
    try:
        values = [int(text) for text in texts]
    except ValueError:
        return None
    return values if list(map(str, values)) == texts else None


def _plain_floats(texts: list[str]) -> list[float] | None:
    if not set("".join(texts)) <= NUMBER_CHARACTERS or not all(map(PLAIN_NUMBER.fullmatch, texts)):
        return None
    return [float(text) for text in texts]


def _parsed(table: Table, column: int, unit: str) -> NDArray[np.float64]:
    values = np.empty(len(table), np.float64)
    for rows in table.chunks():
        texts = table.texts(column, rows)
        # float() also accepts 1_000, １２ and nan; these characters exclude them.
        if set("".join(texts)) <= NUMBER_CHARACTERS:
            with contextlib.suppress(ValueError):
                values[rows] = [float(text) for text in texts]
                continue
        first = next(index for index, text in enumerate(texts) if not NUMBER.fullmatch(text))
        raise _bad_cell(table, column, rows.start + first, unit)
    return values


def _bad_cell(table: Table, column: int, index: int, unit: str) -> SectionError:
    text = table.texts(column, slice(index, index + 1))[0].strip()
    shown = text if len(text) <= 40 else f"{text[:40]}…"
    problem = f"is {shown!r}" if text else "is blank"
    hint = ", decimals with a point" if re.fullmatch(r"[-+]?[\d.]+,\d+", text) else ""
    return SectionError(
        f"{table.location(index)}: column {table.names[column]!r} {problem}; give {unit}{hint}"
    )
