"""The hash of a table of spots: of what a map holds of it, and of nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mclst.runtime.run.hashes import spots_sha256
from mclst.sections.tables.spots import read_spots

TABLE = "id,x_px,y_px,note,area\na,1,2,x,1\nb,3,4,,2\n"


def hash_of(path: Path, text: str) -> str:
    path.write_text(text)
    return spots_sha256(read_spots(path))


def test_the_same_table_has_the_same_hash_wherever_it_lies(tmp_path: Path) -> None:
    first = hash_of(tmp_path / "a.csv", TABLE)
    assert hash_of(tmp_path / "b.tsv", TABLE.replace(",", "\t")) == first
    spots = read_spots(tmp_path / "a.csv")
    assert spots_sha256(replace(spots, path=Path("c"), row=spots.row + 1)) == first


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a,1,2,x", "c,1,2,x"),
        ("3,4", "3,5"),
        ("3,4,,2", "3,4,x,2"),
        ("x,1\n", ",1\n"),
        ("note", "notes"),
        ("note,area\na,1,2,x,1\nb,3,4,,2", "area,note\na,1,2,1,x\nb,3,4,2,"),
        ("x,1\nb,3,4,,2", "x,1.0\nb,3,4,,2.0"),
        ("x,1\nb,3,4,,2", "x,01\nb,3,4,,02"),
        ("x,1\nb,3,4,", "'x',1\nb,3,4,"),
    ],
)
def test_another_cell_name_order_or_type_has_another_hash(tmp_path: Path, old: str, new: str) -> None:
    assert TABLE.count(old) == 1
    assert hash_of(tmp_path / "a.csv", TABLE) != hash_of(tmp_path / "b.csv", TABLE.replace(old, new))
