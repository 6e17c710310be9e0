"""Export a map as a table with a row per spot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mclst.runtime.atomic import atomic_file
from mclst.runtime.errors import needs_extra
from mclst.runtime.expression_map.morans_i import BLOCK_BYTES
from mclst.runtime.expression_map.reader import Map

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins so for a formula, which can run programs."""
POSITION = ("spot", "x_px", "y_px")


def write_csv(expression_map: Map, path: Path, *, escape: bool = False) -> None:
    """Write a map as CSV with seven digits, in blocks of rows, atomically.

    Columns: spot, x_px, y_px (level-0 px), those of `obs`, the genes; a repeated name gets the suffix _2.
    With `escape`, `'` precedes names and texts that begin as formulas do.
    Raises OutputError if the file cannot be written.
    """
    # A writer quotes the characters of its line end: a bare CR in a name would begin a row.
    end = "\r\n" if escape else "\n"
    with atomic_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        for number, block in enumerate(_blocks(expression_map)):
            table = _escaped(block) if escape else block
            table.to_csv(file, index=False, header=number == 0, float_format="%.7g", lineterminator=end)


def write_parquet(expression_map: Map, path: Path) -> None:
    """Write a map as Parquet with the columns of `write_csv`, expression as float32, atomically.

    Raises ResourceError if pyarrow is not installed, OutputError if the file cannot be written.
    """
    with needs_extra("parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    writer = None
    with atomic_file(path) as part:
        try:
            for block in _blocks(expression_map):
                rows = pa.Table.from_pandas(block, preserve_index=False)
                writer = pq.ParquetWriter(part, rows.schema) if writer is None else writer
                writer.write_table(rows.cast(writer.schema))
        finally:
            if writer is not None:
                writer.close()


def _blocks(expression_map: Map) -> Iterator[pd.DataFrame]:
    names = _unique([*POSITION, *expression_map.table.columns, *expression_map.genes])
    rows = max(1, BLOCK_BYTES // (8 * len(expression_map.genes)))
    for start in range(0, len(expression_map.xy_px), rows):
        block = slice(start, start + rows)
        position = pd.DataFrame(
            {
                "spot": expression_map.spots[block],
                "x_px": expression_map.xy_px[block, 0],
                "y_px": expression_map.xy_px[block, 1],
            }
        )
        columns = expression_map.table.iloc[block].reset_index(drop=True)
        values = pd.DataFrame(
            np.asarray(expression_map.expression[block], np.float32), columns=list(expression_map.genes)
        )
        frame = pd.concat([position, columns, values], axis=1)
        frame.columns = pd.Index(names)
        yield frame


def _escaped(block: pd.DataFrame) -> pd.DataFrame:
    """Prefix `'` to column names and texts that begin as formulas do; numbers stay."""

    def escaped(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value

    texts = [name for name, dtype in block.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]
    block = block.assign(**{str(name): block[name].astype(object).map(escaped) for name in texts})
    return block.rename(columns=escaped)


def _unique(names: list[str]) -> list[str]:
    """Add _2, _3, … to repeated names."""
    unique: dict[str, None] = {}
    for name in names:
        candidate, number = name, 1
        while candidate in unique:
            number += 1
            candidate = f"{name}_{number}"
        unique[candidate] = None
    return list(unique)
