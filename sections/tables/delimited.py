"""Strict reader of delimited text: a table is a rectangle of text cells, or refused with the line at fault.

Readers that guess turn barcode 007 into 7 and NA into nothing, and shift columns if every row has an extra
cell.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.sections.errors import SectionError
from mclst.sections.tables.text_file import read_lines

ROWS_AT_ONCE = 8_192
MAX_FIXED_WIDTH = (
    64  # characters; wider columns stay Python strings, since one long cell would widen all others
)
MEMORY_PER_BYTE = 5
"""Memory per byte of the file; 10⁶ rows of 40 bytes were measured at 6.5."""


@dataclass(frozen=True)
class Table:
    """A rectangle of cells.

    names: one per column, as in the file, without surrounding spaces.
    columns: one array [n] per column: packed text from a text file (see `texts`), any dtype from other
    sources.
    row: int64 [n], position of each row, counted in `unit`s from 1.
    unit: "line" of a text file, "row" of anything else.
    has_header: False if the reader supplied the names.
    """

    path: Path
    names: list[str]
    columns: list[NDArray[Any]]
    row: NDArray[np.int64]
    unit: str = "line"
    has_header: bool = True

    def __len__(self) -> int:
        return len(self.row)

    def take(self, keep: NDArray[np.bool_]) -> Table:
        """Select the rows where `keep` [n] is True."""
        return replace(self, columns=[column[keep] for column in self.columns], row=self.row[keep])

    def chunks(self) -> Iterator[slice]:
        """Slices of ROWS_AT_ONCE rows, since a column takes ten times its size as Python strings."""
        return (slice(start, start + ROWS_AT_ONCE) for start in range(0, len(self), ROWS_AT_ONCE))

    def texts(self, column: int, rows: slice) -> list[str]:
        """Cells of a column as text."""
        cells = self.columns[column][rows]
        values: list[Any] = (cells.astype(np.str_) if cells.dtype.kind == "S" else cells).tolist()
        return [str(cell) for cell in values] if cells.dtype.kind not in "SU" else values

    def location(self, index: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.path}: {self.unit} {self.row[index]}"


def read_table(path: Path, names_without_header: Callable[[list[str]], list[str] | None]) -> Table:
    """Read a table delimited by tabs, semicolons or commas; blank lines are skipped.

    names_without_header: maps the first line's cells to column names if that line is data, to None if it is
    the header. Raises SectionError, naming the line, if the table is not a rectangle, a quote is not closed,
    a column name is missing or repeated, or there are no rows.
    """
    _check_size(path)
    lines = read_lines(path)
    blank = []
    for line in lines:
        blank.append(line)
        if line.strip():
            break
    rows = _rows(path, chain(blank, lines), detect_delimiter(blank[-1] if blank else ""))
    first_line, first = next(rows, (0, []))
    if not first:
        raise SectionError(f"{path}: the file is empty")
    names = names_without_header(first)
    has_header = names is None
    if names is None:
        names = _header(path, first_line, first)
        start: list[tuple[int, list[str]]] = []
    else:
        start = [(first_line, first)]
    columns, number = _columns(path, len(names), start, rows)
    if not len(number):
        raise SectionError(f"{path}: the file has a header and no rows")
    return Table(path, names, columns, number, has_header=has_header)


def _check_size(path: Path) -> None:
    """Raise MemoryError if the table of a file cannot fit into this machine's memory."""
    needed = 0
    with suppress(OSError):  # reading it will report the error
        needed = path.stat().st_size * MEMORY_PER_BYTE
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available:
        error = MemoryError()
        error.add_note(
            f"the table {path} would take {needed / 1e9:,.0f} GB or more of the {available / 1e9:,.0f} GB of "
            "memory; give it in pieces"
        )
        raise error


def detect_delimiter(text: str) -> str:
    """Detect the delimiter: the one that splits the first non-blank line into the most cells."""
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")

    def cells(delimiter: str) -> int:
        try:
            return len(next(csv.reader([first.strip("\r\n")], delimiter=delimiter, strict=True)))
        except csv.Error:
            return 1

    return max(("\t", ";", ","), key=cells)  # the first one on a tie


def _rows(path: Path, lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of every non-blank line."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 0
    try:
        for cells in reader:
            if reader.line_num != line + 1:
                raise SectionError(
                    f"{path}: line {line + 1}: a quoted cell runs over several lines; close the quote in its "
                    "line"
                )
            line += 1
            if len(cells) > 1 or (cells and cells[0].strip()):
                yield line, cells
    except csv.Error as error:
        raise SectionError(f"{path}: line {line + 1} cannot be split into cells ({error})") from error


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    for number, name in enumerate(names[1:], start=2):
        if not name:
            raise SectionError(f"{path}: line {line}: column {number} has no name")
    occurrences = Counter(names)
    for name in names:
        if occurrences[name] > 1:
            raise SectionError(
                f"{path}: line {line}: column {name!r} appears {occurrences[name]} times; keep one"
            )
    return names


def _columns(
    path: Path, width: int, start: list[tuple[int, list[str]]], rows: Iterator[tuple[int, list[str]]]
) -> tuple[list[NDArray[Any]], NDArray[np.int64]]:
    parts: list[list[NDArray[Any]]] = [[] for _ in range(width)]
    numbers: list[NDArray[np.int64]] = []
    while chunk := [*start, *islice(rows, ROWS_AT_ONCE)]:
        start = []
        for line, cells in chunk:
            if len(cells) != width:
                raise SectionError(
                    f"{path}: line {line} has {len(cells)} cells where the first line has {width}"
                )
        numbers.append(np.array([line for line, _ in chunk], dtype=np.int64))
        for part, cells_of_column in zip(
            parts, zip(*(cells for _, cells in chunk), strict=True), strict=True
        ):
            part.append(pack_strings(cells_of_column))
    if not numbers:
        return [], np.empty(0, np.int64)
    columns = []
    for part in parts:
        columns.append(concatenate(part))
        part.clear()
    return columns, np.concatenate(numbers)


def pack_strings(cells: Sequence[str]) -> NDArray[Any]:
    """Pack strings [n]: fixed-width bytes if short and ASCII, fixed-width str if short, else objects."""
    if max(map(len, cells)) > MAX_FIXED_WIDTH:
        return np.array(cells, dtype=object)
    try:
        return np.array(cells, dtype=np.bytes_)
    except UnicodeEncodeError:
        return np.array(cells, dtype=np.str_)


def concatenate(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate arrays of `pack_strings`."""
    if len({part.dtype.kind for part in parts}) > 1:
        parts = [part.astype(np.str_) if part.dtype.kind == "S" else part for part in parts]
    return np.concatenate(parts)
