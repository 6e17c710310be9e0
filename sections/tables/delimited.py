"""Text tables read strictly: every cell as text, every line accounted for.

A spreadsheet reader that guesses turns barcode 007 into 7, NA into nothing, and shifts all columns by one where
every row has a cell too many. Here a table either is a rectangle of text or is refused with the line at fault.
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
WIDEST_FIXED = 64  # characters; wider columns stay Python strings, lest one long cell widen a million others
MEMORY_PER_BYTE = 5
"""Of a table's file: 10⁶ rows of 40 bytes were seen to take 6.5."""


@dataclass(frozen=True)
class Table:
    """A rectangle of cells.

    names: one per column, as in the file, without surrounding spaces.
    columns: one array [n] per column: text from a text file (`texts` gives it), any dtype from elsewhere.
    row: int64 [n], where each row stands, counted in `unit`s from 1.
    unit: "line" of a text file, or "row" of anything else.
    has_header: False where the names were given by the reader, not by the file.
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
        """Give the rows where `keep` [n] is True."""
        return replace(self, columns=[column[keep] for column in self.columns], row=self.row[keep])

    def pieces(self) -> Iterator[slice]:
        """All rows, ROWS_AT_ONCE of them at a time: as Python strings a whole column would take ten times its size."""
        return (slice(at, at + ROWS_AT_ONCE) for at in range(0, len(self), ROWS_AT_ONCE))

    def texts(self, column: int, rows: slice) -> list[str]:
        """Give cells of a column as text."""
        cells = self.columns[column][rows]
        found: list[Any] = (cells.astype(np.str_) if cells.dtype.kind == "S" else cells).tolist()
        return [str(cell) for cell in found] if cells.dtype.kind not in "SU" else found

    def at(self, index: int) -> str:
        """Name a row for a message: the file and its line."""
        return f"{self.path}: {self.unit} {self.row[index]}"


def read_table(path: Path, names_without_header: Callable[[list[str]], list[str] | None]) -> Table:
    """Read a table separated by tabs, semicolons or commas; blank lines are skipped.

    names_without_header: given the first line's cells, the columns' names where that line is data already,
        else None: the line is then the header.

    Raises SectionError naming the line where the table is not a rectangle, a quote is not closed, a column has no
    name or a name stands twice, or there are no rows.
    """
    _check_size(path)
    lines = read_lines(path)
    blank = []
    for line in lines:
        blank.append(line)
        if line.strip():
            break
    rows = _rows(path, chain(blank, lines), separator(blank[-1] if blank else ""))
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
    """Raise MemoryError where a file is larger than this machine could ever hold as a table."""
    needed = 0
    with suppress(OSError):  # reading it will tell
        needed = path.stat().st_size * MEMORY_PER_BYTE
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        error = MemoryError()
        error.add_note(
            f"the table {path} would take {needed / 1e9:,.0f} GB or more of its {there / 1e9:,.0f}; give it in pieces"
        )
        raise error


def separator(text: str) -> str:
    """Tell the separator from the first line that is not blank: the one that gives the most cells."""
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")

    def cells(mark: str) -> int:
        try:
            return len(next(csv.reader([first.strip("\r\n")], delimiter=mark, strict=True)))
        except csv.Error:
            return 1

    return max(("\t", ";", ","), key=cells)  # the first of equals


def _rows(path: Path, lines: Iterator[str], mark: str) -> Iterator[tuple[int, list[str]]]:
    """Give (line, cells) of every line that is not blank."""
    reader = csv.reader(lines, delimiter=mark, strict=True)
    line = 0
    try:
        for cells in reader:
            if reader.line_num != line + 1:
                raise SectionError(
                    f"{path}: line {line + 1}: a quoted cell runs over several lines; close the quote in its line"
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
    times = Counter(names)
    for name in names:
        if times[name] > 1:
            raise SectionError(
                f"{path}: line {line}: column {name!r} stands there {times[name]} times; keep one"
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
            part.append(text_array(cells_of_column))
    if not numbers:
        return [], np.empty(0, np.int64)
    columns = []
    for part in parts:
        columns.append(joined(part))
        part.clear()
    return columns, np.concatenate(numbers)


def text_array(cells: Sequence[str]) -> NDArray[Any]:
    """Pack strings into an array [n]: of fixed width where all are short, a byte a letter where all are ASCII; of Python
    strings else."""
    if max(map(len, cells)) > WIDEST_FIXED:
        return np.array(cells, dtype=object)
    try:
        return np.array(cells, dtype=np.bytes_)
    except UnicodeEncodeError:
        return np.array(cells, dtype=np.str_)


def joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """One array of several from `text_array`."""
    if len({part.dtype.kind for part in parts}) > 1:
        parts = [part.astype(np.str_) if part.dtype.kind == "S" else part for part in parts]
    return np.concatenate(parts)
