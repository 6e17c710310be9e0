"""Hashes and stamps of what a run reads: of what a map holds of it, and of nothing else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mclst.runtime.errors import SlideError
from mclst.runtime.run.hashes import SlideHash, spots_sha256
from mclst.runtime.run.job import _describe_file as describe_file
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


@pytest.mark.parametrize("name", ["a.mrxs", "a.dcm"], ids=["MIRAX", "DICOM"])
def test_pixels_that_change_in_another_file_of_a_slide_are_noticed(tmp_path: Path, name: str) -> None:
    slide = tmp_path / name
    slide.write_bytes(bytes(128) + b"DICM, the index")
    part = tmp_path / "b.dcm"
    if name == "a.mrxs":
        part = tmp_path / "a" / "Data0000.dat"
        part.parent.mkdir()
        (tmp_path / "a" / "Slidedat.ini").write_text("[GENERAL]")
    part.write_bytes(bytes(128) + b"DICM, the pixels")
    before = describe_file(slide)
    with SlideHash(slide) as slide_hash:
        sha256 = slide_hash.result()
        slide_hash.check_unchanged()
        part.write_bytes(bytes(128) + b"DICM, other pixels")
        with pytest.raises(SlideError, match="changed while it was being read"):
            slide_hash.check_unchanged()
    assert describe_file(slide) != before
    with SlideHash(slide) as other:
        assert other.result() != sha256


def test_a_slide_of_one_file_keeps_the_identity_that_reports_hold(tmp_path: Path) -> None:
    slide = tmp_path / "a.tif"
    slide.write_bytes(b"12345")
    os.utime(slide, ns=(7, 7))
    assert describe_file(slide) == "5 bytes of 7"
