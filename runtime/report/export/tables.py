"""A map as one flat table: a row per spot, its name, place and columns, then every gene."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from mclst.runtime.atomic import atomic_file
from mclst.runtime.errors import ResourceError
from mclst.runtime.expression_map.morans_i import BLOCK_BYTES
from mclst.runtime.expression_map.reader import Map

PLACE = ("spot", "x_px", "y_px")


def write_csv(found: Map, out: Path) -> Path:
    """Write a map to the CSV `out`, seven digits a value, some rows at a time, whole or not at all; returns `out`.

    Columns: spot, x_px, y_px (level-0 px), the map's own, the genes; a name that stands there already gets _2.
    Raises OutputError.
    """
    with atomic_file(out) as part, part.open("w", encoding="utf-8", newline="") as file:
        for number, block in enumerate(_blocks(found)):
            block.to_csv(file, index=False, header=number == 0, float_format="%.7g", lineterminator="\n")
    return out


def write_parquet(found: Map, out: Path) -> Path:
    """Write a map to the Parquet file `out`, expression as float32, in the columns of `write_csv`; returns `out`.

    Raises ResourceError where pyarrow is not installed, OutputError where `out` cannot be written.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ResourceError(f"{error.name} is not installed; install mclst[parquet]") from error
    writer = None
    with atomic_file(out) as part:
        try:
            for block in _blocks(found):
                rows = pa.Table.from_pandas(block, preserve_index=False)
                writer = pq.ParquetWriter(part, rows.schema) if writer is None else writer
                writer.write_table(rows.cast(writer.schema))
        finally:
            if writer is not None:
                writer.close()
    return out


def _blocks(found: Map) -> Iterator[pd.DataFrame]:
    own = list(found.table.columns)
    names = _distinct([*PLACE, *own, *found.genes])
    rows = max(1, BLOCK_BYTES // (8 * len(found.genes)))
    for start in range(0, len(found.xy_px), rows):
        here = slice(start, start + rows)
        place = pd.DataFrame(
            {"spot": found.spots[here], "x_px": found.xy_px[here, 0], "y_px": found.xy_px[here, 1]}
        )
        columns = found.table.iloc[here].reset_index(drop=True)
        values = pd.DataFrame(np.asarray(found.expression[here], np.float32), columns=list(found.genes))
        block = pd.concat([place, columns, values], axis=1)
        block.columns = pd.Index(names)
        yield block


def _distinct(names: list[str]) -> list[str]:
    """The names, one that is in use already with _2, _3, … behind it."""
    found: dict[str, None] = {}
    for name in names:
        wished, number = name, 1
        while wished in found:
            number += 1
            wished = f"{name}_{number}"
        found[wished] = None
    return list(found)
