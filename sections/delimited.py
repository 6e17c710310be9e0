"""Text tables read strictly: every cell as text, every line accounted for.

A spreadsheet reader that guesses turns barcode 007 into 7, NA into nothing, and shifts all columns by one where
every row has a cell too many. Here a table either is a rectangle of text or is refused with the line at fault.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.sections.section import SectionError

ROWS_AT_ONCE = 8_192
WIDEST_FIXED = 64  # characters; wider columns stay Python strings, lest one long cell widen a million others
MAGIC = {
    b"\x1f\x8b": "gzip-compressed; unpack it first",
    b"PK\x03\x04": "a zip archive or an Excel workbook; save the table as .csv",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the table as .csv",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}


@dataclass(frozen=True)
class Table:
    """A rectangle of cells.

    names: one per column, as in the file, without surrounding spaces.
    columns: one array [n] per column: text from a text file, any dtype from elsewhere.
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

    def at(self, index: int) -> str:
        """Name a row for a message: the file and its line."""
        return f"{self.path}: {self.unit} {self.row[index]}"


def read_text(path: Path, *, may_be_gzip: bool = False) -> str:
    """Read a UTF-8 file whole, a byte-order mark dropped.

    Raises SectionError where it cannot be read, is empty, holds NUL or is not UTF-8 (the line is named).
    """
    try:
        raw = path.read_bytes()
        if may_be_gzip and raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise SectionError(f"{path}: the file cannot be read ({_reason(error)})") from error
    for magic, what in MAGIC.items():
        if raw.startswith(magic):
            raise SectionError(f"{path}: the file is {what}")
    if (nul := raw.find(b"\0")) >= 0:
        raise SectionError(
            f"{path}: line {_line(raw, nul)} holds a NUL byte; the file is damaged or not text"
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SectionError(
            f"{path}: line {_line(raw, error.start)} is not UTF-8; save the file as UTF-8"
        ) from error
    if not text.strip():
        raise SectionError(f"{path}: the file is empty")
    return text


def read_table(path: Path, names_without_header: Callable[[list[str]], list[str] | None]) -> Table:
    """Read a table separated by tabs, semicolons or commas; blank lines are skipped.

    names_without_header: given the first line's cells, the columns' names where that line is data already,
        else None: the line is then the header.

    Raises SectionError naming the line where the table is not a rectangle, a quote is not closed, a column has no
    name or a name stands twice, or there are no rows.
    """
    text = read_text(path)
    rows = _rows(path, text, separator(text))
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
    columns, line = _columns(path, len(names), start, rows)
    if not len(line):
        raise SectionError(f"{path}: the file has a header and no rows")
    return Table(path, names, columns, line, has_header=has_header)


def separator(text: str) -> str:
    """Tell the separator from the first line that is not blank: the one that gives the most cells."""
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")

    def cells(mark: str) -> int:
        try:
            return len(next(csv.reader([first.strip("\r\n")], delimiter=mark, strict=True)))
        except csv.Error:
            return 1

    return max(("\t", ";", ","), key=cells)  # the first of equals


def _rows(path: Path, text: str, mark: str) -> Iterator[tuple[int, list[str]]]:
    """Give (line, cells) of every line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
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
    lines: list[int] = []
    while chunk := [*start, *islice(rows, ROWS_AT_ONCE)]:
        start = []
        for line, cells in chunk:
            if len(cells) != width:
                raise SectionError(
                    f"{path}: line {line} has {len(cells)} cells where the first line has {width}"
                )
        lines += [line for line, _ in chunk]
        for part, cells_of_column in zip(
            parts, zip(*(cells for _, cells in chunk), strict=True), strict=True
        ):
            part.append(text_array(cells_of_column))
    columns = []
    for part in parts:
        columns.append(np.concatenate(part) if part else np.empty(0, dtype=np.str_))
        part.clear()
    return columns, np.array(lines, dtype=np.int64)


def text_array(cells: tuple[str, ...]) -> NDArray[Any]:
    """Pack strings into an array [n]: of fixed width where all are short, of Python strings else."""
    if max(map(len, cells)) <= WIDEST_FIXED:
        return np.array(cells, dtype=np.str_)
    return np.array(cells, dtype=object)


def _line(raw: bytes, position: int) -> int:
    return raw.count(b"\n", 0, position) + 1


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
