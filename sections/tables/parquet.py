"""Read Parquet tables from anywhere: whole, or columns in blocks of rows; needs pyarrow."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from mclst.sections.errors import SectionError, pass_out_of_memory

MAX_TABLE_BYTES = 4 << 30
"""Of a table in memory; of a row group, which pyarrow decodes as a whole."""
ROWS_AT_ONCE = 1 << 20


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a whole table; SectionError if it is damaged, or declares more than MAX_TABLE_BYTES."""
    with _open(path) as file:
        _check_size(path, file)
        return pd.read_parquet(path, engine="pyarrow")


def check_parquet(path: Path) -> None:
    """Raise SectionError if a table is damaged, or declares more than MAX_TABLE_BYTES."""
    with _open(path) as file:
        _check_size(path, file)


def _check_size(path: Path, file: Any) -> None:
    # A few kilobytes of Parquet can declare billions of equal cells.
    info = file.metadata
    declared = sum(info.row_group(group).total_byte_size for group in range(info.num_row_groups))
    if max(declared, info.num_rows * max(1, info.num_columns) * 8) > MAX_TABLE_BYTES:
        raise SectionError(
            f"{path}: the table declares {info.num_rows:,} rows of {info.num_columns} columns, more than "
            f"{MAX_TABLE_BYTES >> 30} GB; give it in pieces, or only names and coordinates"
        )


def stream_columns(path: Path, texts: Sequence[str], numbers: Sequence[str]) -> Iterator[list[NDArray[Any]]]:
    """Yield columns in blocks of rows: first the texts, then the numbers; a missing number is NaN.

    For tables whose rows all differ, such as transcripts: a file with more rows than bytes is refused.
    Raises SectionError if a column is missing, a number is none, or the file is damaged or declares too much.
    """
    names = [*texts, *numbers]
    with _open(path) as file:
        info, schema = file.metadata, file.schema_arrow
        missing = [name for name in names if name not in schema.names]
        if missing:
            shown = ", ".join(map(repr, schema.names[:12])) + (", …" if len(schema.names) > 12 else "")
            raise SectionError(f"{path}: there is no column {', '.join(missing)} among {shown}")
        size = path.stat().st_size
        if info.num_rows > size:
            raise SectionError(
                f"{path}: the table declares {info.num_rows:,} rows in {size:,} bytes; it is damaged"
            )
        for group in range(info.num_row_groups):
            chunks = (info.row_group(group).column(i) for i in range(info.num_columns))
            wanted = (c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in names)
            if (declared := sum(wanted)) > MAX_TABLE_BYTES:
                raise SectionError(f"{path}: row group {group} declares {declared:,} bytes; it is damaged")
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=names):
            columns = [batch.column(name).to_numpy(zero_copy_only=False) for name in names]
            for name, column in zip(numbers, columns[len(texts) :], strict=True):
                if column.dtype.kind in "iuf":
                    continue
                raise SectionError(f"{path}: column {name} does not hold numbers; export the table again")
            yield columns


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    if importlib.util.find_spec("pyarrow") is None:
        raise SectionError(
            f"{path}: reading Parquet needs pyarrow; install mclst[parquet], or save the table as .csv"
        )
    try:
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as file:
            yield file
    except SectionError:
        raise
    except Exception as error:  # on damaged bytes pyarrow raises many types
        pass_out_of_memory(error)
        raise SectionError(f"{path}: the Parquet file cannot be read ({error})") from error
