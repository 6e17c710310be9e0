"""Spot tables: every known format gives the right pixels, every broken one an error."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick

from mclst.runtime.errors import describe_error
from mclst.runtime.run.job import Job, resolve_spots
from mclst.runtime.run.options import RunOptions
from mclst.runtime.slide.open import open_slide
from mclst.sections import SectionError, Spots, find_sections, read_section, read_spots
from mclst.sections.errors import UnknownScale
from mclst.sections.tables import parquet as parquet_module
from mclst.sections.tables.delimited import ROWS_AT_ONCE, read_table

SHARED = Path(__file__).resolve().parents[2].parent / "shared"

SPACE_RANGER_2 = """barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres
AAACAAGTATCTCCCA-1,1,50,102,8513,9811
AAACACCAATAACTGC-1,0,59,19,9605,4104
AAACAGAGCGACTCCT-1,1,14,94,4205.5,9250
"""
LEGACY = (
    "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n"
    "21\t8\t20.809\t7.912\t5743.37\t2015.86\t1\n20\t8\t20.066\t7.93\t5527.95\t2021.11\t0\n"
)


def spots_of(tmp_path: Path, text: str | bytes, name: str = "spots.csv", **options: bool) -> Spots:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_spots(path, **options)


def error_of(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(SectionError) as caught:
        spots_of(tmp_path, text)
    message = str(caught.value)
    assert "spots.csv" in message and "\n" not in message
    return message


# The spellings in use


def test_space_ranger_2_x_is_the_pixel_column(tmp_path: Path) -> None:
    spots = spots_of(tmp_path, SPACE_RANGER_2)
    assert spots.variant == "Space Ranger 2"
    assert spots.id.tolist() == ["AAACAAGTATCTCCCA-1", "AAACAGAGCGACTCCT-1"]
    assert spots.xy_px.tolist() == [[9811.0, 8513.0], [9250.0, 4205.5]]
    assert spots.array_xy is not None and spots.array_xy.tolist() == [[102, 50], [94, 14]]
    assert spots.row.tolist() == [2, 4]
    assert "pxl_col_in_fullres" in spots.coordinates and "1 left out for in_tissue = 0" in spots.coordinates
    assert spots.table["array_row"].tolist() == [50, 14]


def test_all_spots_keeps_off_tissue_spots(tmp_path: Path) -> None:
    spots = spots_of(tmp_path, SPACE_RANGER_2, all_spots=True)
    assert len(spots) == 3
    assert "left out" not in spots.coordinates


def test_space_ranger_1_has_no_header(tmp_path: Path) -> None:
    headless = SPACE_RANGER_2.split("\n", 1)[1]
    spots = spots_of(tmp_path, headless)
    assert spots.variant == "Space Ranger 1"
    assert spots.xy_px.tolist() == [[9811.0, 8513.0], [9250.0, 4205.5]]
    assert spots.row.tolist() == [1, 3]


def test_legacy_selection_takes_pixels_not_array_indices(tmp_path: Path) -> None:
    spots = spots_of(tmp_path, LEGACY)
    assert spots.variant == "legacy ST selection"
    assert spots.id.tolist() == ["21x8"]
    assert spots.xy_px.tolist() == [[5743.37, 2015.86]]
    assert spots.array_xy is not None and spots.array_xy.tolist() == [[21, 8]]
    assert spots_of(tmp_path, LEGACY, all_spots=True).id.tolist() == ["21x8", "20x8"]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("cell,imagerow,imagecol", "a,7,5"),
        (",tissue,row,col,imagerow,imagecol", "a,1,3,4,7,5"),
        ("id,x_px,y_px", "a,5,7"),
        ("barcode,pixel_x,pixel_y", "a,5,7"),
        ("spot,X_pixel,Y_pixel", "a,5,7"),
        ("name,HE_X,HE_Y", "a,5,7"),
        ("ID,X,Y", "a,5,7"),
        ("id , x_px, y_px", "a,5,7"),
        ("barcode,x,y,pixel_x,pixel_y", "a,1.5,2.5,5,7"),
        ("id,x,y,x_px,y_px", "a,1,2,5,7"),
    ],
)
def test_other_spellings(tmp_path: Path, header: str, row: str) -> None:
    spots = spots_of(tmp_path, f"{header}\n{row}\n")
    assert spots.id.tolist() == ["a"]
    assert spots.xy_px.tolist() == [[5.0, 7.0]]


@pytest.mark.parametrize("cell", ["AAACAAGTATCTCCCA-1", "s_008um_00301_00321-1", "a_AAACAAGTATCTCCCA-1_2"])
def test_the_coordinates_of_seurat_5_do_not_say_which_axis_runs_across(tmp_path: Path, cell: str) -> None:
    for table in (f'"","x","y","cell"\n"{cell}",5,7,"{cell}"\n', f"x\ty\tcell\n5\t7\t{cell}\n"):
        with pytest.raises(SectionError, match=r"are Seurat 5's, .* runs across imagecol"):
            spots_of(tmp_path, table)
        named = table.replace("x", "imagerow", 1).replace("y", "imagecol", 1)
        assert spots_of(tmp_path, named).xy_px.tolist() == [[7.0, 5.0]]
    for table in (f"x,y,cell,area\n5,7,{cell},1\n", f"x,y,id\n5,7,{cell}\n", "x,y,cell\n5,7,cell12\n"):
        assert spots_of(tmp_path, table).xy_px.tolist() == [[5.0, 7.0]]


def test_plain_x_y_are_level_0_pixels(tmp_path: Path) -> None:
    spots = spots_of(tmp_path, "x,y\n5,7\n8,9\n")
    assert spots.id.tolist() == ["1", "2"]
    assert spots.coordinates == "x, y as x, y in level-0 px"


@pytest.mark.parametrize("delimiter", ["\t", ";", ","])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_delimiter_line_end_and_bom(tmp_path: Path, delimiter: str, end: str, bom: bytes) -> None:
    text = (
        end.join(
            delimiter.join(cells) for cells in (["id", "x_px", "y_px"], ["a", "1.5", "2"], ["b", "1e3", "-4"])
        )
        + end
    )
    spots = spots_of(tmp_path, bom + text.encode())
    assert spots.xy_px.tolist() == [[1.5, 2.0], [1000.0, -4.0]]
    assert spots.row.tolist() == [2, 3]


def test_names_stay_text(tmp_path: Path) -> None:
    names = ["007", "NA", "1e5", "nan", "None", "=1+1", "x,y", "True"]
    text = "id,x_px,y_px\n" + "".join(f'"{name}",{i},{i}\n' for i, name in enumerate(names))
    assert spots_of(tmp_path, text).id.tolist() == names
    assert spots_of(tmp_path, text).table["id"].tolist() == names


def test_columns_become_numbers_only_without_loss(tmp_path: Path) -> None:
    text = "id,x_px,y_px,count,score,zip,note\na,1,2,10,0.5,007,NA\nb,3,4,-2,1,12,\n"
    table = spots_of(tmp_path, text).table
    assert table["count"].tolist() == [10, -2] and table["count"].dtype == np.int64
    assert table["score"].tolist() == [0.5, 1.0]
    assert table["zip"].tolist() == ["007", "12"]
    assert table["note"].tolist() == ["NA", ""]


def test_blank_lines_are_skipped_and_lines_still_counted(tmp_path: Path) -> None:
    spots = spots_of(tmp_path, "\nid,x_px,y_px\n\na,1,2\n   \nb,3,4\n\n")
    assert spots.row.tolist() == [4, 6]


def test_skipped_spots_may_lack_pixels(tmp_path: Path) -> None:
    text = "id,in_tissue,x_px,y_px\na,1,5,7\nb,0,,\n"
    assert len(spots_of(tmp_path, text)) == 1
    with pytest.raises(SectionError, match="line 3: column 'x_px' is blank"):
        spots_of(tmp_path, text, all_spots=True)


# Broken ones


@pytest.mark.parametrize(
    "cell",
    ["", " ", "nan", "NaN", "inf", "-inf", "abc", "1e30", "1_000", "１２", "0x10", "1 2", "--1", "1e400"],
)
def test_invalid_coordinates_are_refused(tmp_path: Path, cell: str) -> None:
    message = error_of(tmp_path, f"id,x_px,y_px\na,1,2\nb,3,{cell}\n")
    assert "line 3: column 'y_px'" in message
    assert not cell.strip() or repr(cell.strip()) in message


def test_decimal_commas_are_refused_by_name(tmp_path: Path) -> None:
    message = error_of(tmp_path, "id;x_px;y_px\na;1,5;2\n")
    assert "'1,5'" in message and "decimals with a point" in message
    assert "'1,234'" in error_of(tmp_path, 'id,x_px,y_px\na,"1,234",2\n')


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "empty"),
        (" \n\n", "empty"),
        ("id,x_px,y_px\n", "no rows"),
        ("id,x_px,y_px\na,1,2\na,3,4\n", "line 3: spot 'a' is in line 2 already"),
        ("id,x_px,x_px,y_px\na,1,2,3\n", "line 1: column 'x_px' appears 2 times"),
        ("id,x_px,X_PX,y_px\na,1,2,3\n", "both read as x_px"),
        ("id,x_px,y_px,\na,1,2,\n", "line 1: column 4 has no name"),
        ("id,x_px,y_px\na,1,2\nb,3\n", "line 3 has 2 cells where the first line has 3"),
        ("id,x_px,y_px\na,1,2,9\n", "line 2 has 4 cells where the first line has 3"),
        ("id,x_px,y_px\nq,a,1,2\nr,b,3,4\n", "line 2 has 4 cells"),
        ('id,x_px,y_px\n"a,1,2\nb,3,4\n', "line 2"),
        ('id,x_px,y_px\n"a\nb",1,2\n', "line 2: a quoted cell runs over several lines"),
        ('id,x_px,y_px\na,"1"2,2\n', "line 2 cannot be split"),
        ("id,x_px,y_px\n,1,2\n", "line 2: the spot has no name"),
        (f"id,x_px,y_px\n{'a' * 300},1,2\n", "line 2: the spot has a name of 300 characters"),
        ("id,a,b\nc,1,2\n", "'id', 'a', 'b'"),
        (
            "id,x_um,y_um\na,1,2\n",
            "is in µm, and the slide does not say how large its pixels are; give --mpp",
        ),
        ("x,y,new_x,new_y\n1,2,1.1,2.1\n", "array coordinates"),
        ("1,2,3\n4,5,6\n", "add a header line"),
        ("21\t8\t20.8\t7.9\t5743\t2015\n20\t8\t20.1\t7.9\t5527\t2021\n", "add a header line"),
        ("x,y,pixel_x,pixel_y\n10.1,2,5,6\n", "line 2: column 'x' is '10.1'; give a whole number"),
        ("id,in_tissue,x_px,y_px\na,0,1,2\n", "no spot is left"),
        ("id,in_tissue,x_px,y_px\na,2,1,2\n", "line 2: column 'in_tissue' is '2'; give 0 or 1"),
    ],
)
def test_a_broken_table_is_refused_with_its_line(tmp_path: Path, text: str, fragment: str) -> None:
    assert fragment in error_of(tmp_path, text)


@pytest.mark.parametrize(
    ("raw", "fragment"),
    [
        (gzip.compress(LEGACY.encode()), "gzip"),
        (LEGACY.encode("utf-16"), "UTF-16"),
        (LEGACY.encode("utf-16-le"), "NUL"),
        ("id,x_px,y_px\na,1,2\né,3,4\n".encode("latin-1"), "line 3 is not UTF-8"),
        (b"id,x_px,y_px\na,1,2\x00\n", "line 2 holds a NUL"),
        (b"PK\x03\x04rest", "Excel"),
        (b"PAR1 but not Parquet", "Parquet"),
        (b"\x89HDF\r\n\x1a\n but not HDF5", "AnnData"),
    ],
)
def test_other_content_is_refused_with_its_type(tmp_path: Path, raw: bytes, fragment: str) -> None:
    assert fragment in error_of(tmp_path, raw)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SectionError, match=re.escape(str(tmp_path / "no.csv"))):
        read_spots(tmp_path / "no.csv")


# Numerics and the parser, against independent readers


name = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1, max_size=12
)
pixel = st.floats(-1e9, 1e9, allow_nan=False)


@quick
@given(
    rows=st.lists(
        st.tuples(name, pixel, pixel, st.text("ab,;\t\"'", max_size=6)),
        min_size=1,
        max_size=12,
        unique_by=lambda r: r[0],
    ),
    delimiter=st.sampled_from("\t;,"),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_round_trip(
    tmp_path: Path, rows: list[tuple[str, float, float, str]], delimiter: str, end: str, quoting: int
) -> None:
    written = io.StringIO()
    writer = csv.writer(written, delimiter=delimiter, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows(
        [("id", "x_px", "y_px", "note"), *((i, repr(x), repr(y), note) for i, x, y, note in rows)]
    )
    spots = spots_of(tmp_path, written.getvalue())
    assert spots.id.tolist() == [row[0] for row in rows]
    assert spots.xy_px.tolist() == [[row[1], row[2]] for row in rows]
    assert spots.table["note"].tolist() == [row[3] for row in rows]


@quick
@given(
    raw=st.one_of(st.binary(max_size=200), st.text("ixy_pd,;\t\n\r\"'019.-e", max_size=80).map(str.encode))
)
def test_any_bytes_give_spots_or_an_error(tmp_path: Path, raw: bytes) -> None:
    try:
        spots = spots_of(tmp_path, raw)
    except SectionError as error:
        assert "spots.csv" in str(error)
    else:
        assert np.isfinite(spots.xy_px).all() and len(set(spots.id.tolist())) == len(spots)


@quick
@given(
    position=st.integers(0, len(SPACE_RANGER_2) - 1),
    damage=st.sampled_from([b"", b"\x00", b'"', b",", b"\n", b"\xff", b"9", b";"]),
)
def test_a_damaged_table_gives_spots_or_an_error(tmp_path: Path, position: int, damage: bytes) -> None:
    raw = SPACE_RANGER_2.encode()
    try:
        spots = spots_of(tmp_path, raw[:position] + damage + raw[position + 1 :])
    except SectionError:
        return
    assert spots.xy_px.shape == (len(spots), 2) and len(spots.table) == len(spots)


def test_a_hundred_thousand_rows_agree_with_pandas(tmp_path: Path) -> None:
    n = 100_000
    xy = np.random.default_rng(0).uniform(0, 1e5, (n, 2))
    frame = pd.DataFrame({"id": [f"s{i}" for i in range(n)], "x_px": xy[:, 0], "y_px": xy[:, 1]})
    frame.to_csv(tmp_path / "spots.csv", index=False)
    spots = read_spots(tmp_path / "spots.csv")
    assert np.array_equal(spots.xy_px, xy)
    assert spots.row[-1] == n + 1


def test_columns_that_change_type_between_chunks(tmp_path: Path) -> None:
    """After the first chunks each column changes: to decimals, to text, to other letters, to long cells."""
    n = 3 * ROWS_AT_ONCE + 5
    number = np.arange(n)
    last = n - 2
    cells = {
        "id": [f"s{i}" for i in number],
        "x_px": [str(i) for i in number],
        "y_px": [str(i) for i in number],
        "whole": [str(i) for i in number],
        "decimal": [str(i) for i in number],
        "name": [str(i) for i in number],
        "tissue": ["tumour"] * n,
        "note": ["short"] * n,
    }
    cells["id"][last], cells["x_px"][last], cells["decimal"][last] = "β", "0.25", "-1.5e2"
    cells["name"][last], cells["tissue"][last], cells["note"][last] = "007", "Gewebe ü", "z" * 300
    rows = zip(*cells.values(), strict=True)
    text = "\n".join([",".join(cells), *map(",".join, rows)])
    spots = spots_of(tmp_path, text)
    assert spots.id.tolist() == cells["id"] and spots.id.dtype.kind == "U"
    assert spots.xy_px[:, 0].tolist() == [float(cell) for cell in cells["x_px"]]
    assert spots.row.tolist() == list(range(2, n + 2))
    table = spots.table
    assert table["whole"].dtype == np.int64 and table["whole"].tolist() == number.tolist()
    assert table["decimal"].dtype == np.float64
    assert table["decimal"].tolist() == [float(cell) for cell in cells["decimal"]]
    for column in ("id", "name", "tissue", "note"):
        assert table[column].tolist() == cells[column]


@pytest.mark.parametrize(
    ("spoil", "fragment"),
    [
        (lambda lines: lines.__setitem__(-1, lines[-1] + ",9"), "has 4 cells"),
        (lambda lines: lines.__setitem__(-1, "last,4,five"), "column 'y_px' is 'five'"),
        (lambda lines: lines.__setitem__(-1, lines[9]), "is in line 10 already"),
        (lambda lines: lines.__setitem__(-1, ",4,5"), "the spot has no name"),
        (lambda lines: lines.__setitem__(-1, "l\0st,4,5"), "holds a NUL byte"),
        (lambda lines: lines.__setitem__(-1, "l\udcffst,4,5"), "is not UTF-8"),
    ],
)
def test_errors_far_down_name_their_line(tmp_path: Path, spoil: Any, fragment: str) -> None:
    n = 70_000  # more than a block of the file
    lines = ["id,x_px,y_px", *(f"a rather long name of spot {i},{i},{i}" for i in range(n))]
    spoil(lines)
    message = error_of(tmp_path, "\n".join(lines).encode("utf-8", "surrogateescape"))
    assert f"line {n + 1}" in message and fragment in message


def test_peak_memory_stays_near_the_result(tmp_path: Path) -> None:
    n = 20_000
    rows = "".join(f"s_002um_{i // 150:05d}_{i % 150:05d}-1,{i % 977 + 0.25},{i / 7:.2f}\n" for i in range(n))
    (tmp_path / "spots.csv").write_text(f"barcode,x_px,y_px\n{rows}")
    del rows
    tracemalloc.start()
    try:
        spots = read_spots(tmp_path / "spots.csv")
        assert len(spots.table.columns) == 3
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(spots) == n and kept < 250 * n
    assert peak < 1.6 * kept


def test_a_table_beyond_all_memory_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spots.csv").write_text("id,x_px,y_px\na,1,2\n")
    monkeypatch.setattr(os, "sysconf", lambda name: 1)
    with pytest.raises(MemoryError) as caught:
        read_spots(tmp_path / "spots.csv")
    sentence, code = describe_error(caught.value)
    assert code == 6 and "spots.csv would take" in sentence and "in pieces" in sentence


def test_a_long_cell_does_not_widen_its_column(tmp_path: Path) -> None:
    long = "z" * 10_000
    table = spots_of(tmp_path, f"id,x_px,y_px,note\na,1,2,{long}\nb,3,4,short\n").table
    assert table["note"].tolist() == [long, "short"]
    assert read_table(tmp_path / "spots.csv", lambda first: None).columns[3].dtype == object


# Folders, AnnData, Parquet, frames


def space_ranger_folder(tmp_path: Path, diameter: object = 89.4) -> Path:
    spatial = tmp_path / "outs" / "spatial"
    spatial.mkdir(parents=True)
    (spatial / "tissue_positions.csv").write_text(SPACE_RANGER_2)
    (spatial / "scalefactors_json.json").write_text(json.dumps({"spot_diameter_fullres": diameter}))
    return spatial


def test_a_space_ranger_folder_gives_its_positions(tmp_path: Path) -> None:
    spatial = space_ranger_folder(tmp_path)
    for folder in (spatial, spatial.parent, tmp_path, spatial / "tissue_positions.csv"):
        spots = read_spots(folder)
        assert spots.path == spatial / "tissue_positions.csv"
        assert spots.spot_diameter_px == 89.4


def test_two_positions_files_or_bad_scalefactors_are_refused(tmp_path: Path) -> None:
    spatial = space_ranger_folder(tmp_path, diameter=-1)
    with pytest.raises(SectionError, match="spot_diameter_fullres is -1"):
        read_spots(spatial)
    (spatial / "scalefactors_json.json").write_text("{")
    with pytest.raises(SectionError, match="not JSON"):
        read_spots(spatial)
    (spatial / "tissue_positions_list.csv").write_text(SPACE_RANGER_2)
    with pytest.raises(SectionError, match="both are positions files"):
        read_spots(spatial)


def test_a_folder_without_positions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SectionError, match="name the spots file"):
        read_spots(tmp_path)


def anndata_of(n: int = 3) -> ad.AnnData:
    obs = pd.DataFrame(
        {"in_tissue": [1, 0, 1], "array_row": [1, 2, 3], "array_col": [4, 5, 6]}, index=["a", "b", "c"]
    )
    data = ad.AnnData(np.ones((n, 2), dtype=np.float32), obs=obs[:n])
    data.obsm["spatial"] = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])[:n]
    data.uns["spatial"] = {"lib": {"scalefactors": {"spot_diameter_fullres": 12.5}}}
    return data


def test_anndata_from_disk_and_from_memory(tmp_path: Path) -> None:
    data = anndata_of()
    data.write_h5ad(tmp_path / "any.name")
    for spots in (read_spots(tmp_path / "any.name"), read_spots(data)):
        assert spots.variant == "AnnData"
        assert spots.id.tolist() == ["a", "c"]
        assert spots.xy_px.tolist() == [[1.0, 2.0], [5.0, 6.0]]
        assert spots.array_xy is not None and spots.array_xy.tolist() == [[4, 1], [6, 3]]
        assert spots.spot_diameter_px == 12.5
        assert spots.row.tolist() == [1, 3]


def visium(scale: float = 1.0) -> ad.AnnData:
    """Spots with a pitch of 1,000 px and a diameter of 650, as of Space Ranger, or as Seurat scales them."""
    row, column = np.mgrid[0:12, 0:12]
    across, down = 2 * column.ravel() + row.ravel() % 2, row.ravel()
    xy_px = 1500 + np.stack([100 * across, 173.2 * down], 1) * 5
    data = ad.AnnData(np.ones((len(xy_px), 1), np.float32), obsm={"spatial": xy_px * scale})
    factors = {"tissue_hires_scalef": 0.125, "tissue_lowres_scalef": 0.0375, "spot_diameter_fullres": 650.0}
    images = {"hires": np.zeros((2000, 1800, 3), np.uint8), "lowres": np.zeros((600, 540, 3), np.uint8)}
    data.uns["spatial"] = {"slice1": {"scalefactors": factors, "images": images}}
    return data


@pytest.mark.parametrize(("picture", "scale"), [("hires", 0.125), ("lowres", 0.0375)])
@pytest.mark.parametrize("with_images", [True, False])
def test_positions_that_seurat_scaled_to_a_picture_are_refused(
    tmp_path: Path, picture: str, scale: float, with_images: bool
) -> None:
    data = visium(scale)
    if not with_images:
        del data.uns["spatial"]["slice1"]["images"]
    data.write_h5ad(tmp_path / "S1.h5ad")
    readers: list[Any] = [
        lambda: read_spots(data),
        lambda: read_spots(tmp_path / "S1.h5ad"),
        lambda: read_section(find_sections(tmp_path)["S1"]),
    ]
    for read in readers:
        with pytest.raises(SectionError, match=rf"px of the {picture} picture, as Seurat.*{scale}, or take"):
            read()
    data.obsm["spatial"][3] = np.nan  # a spot without a position says nothing
    with pytest.raises(SectionError, match=rf"px of the {picture} picture"):
        read_spots(data)


@pytest.mark.parametrize("change", ["full", "corner", "other diameter", "two libraries", "lone"])
def test_positions_at_full_resolution_are_taken_wherever_they_lie(tmp_path: Path, change: str) -> None:
    data = visium()
    library = data.uns["spatial"]["slice1"]
    if change == "corner":
        data.obsm["spatial"] = (data.obsm["spatial"] - 1500) * 0.13
        library["scalefactors"]["spot_diameter_fullres"] = 650 * 0.13
    elif change != "full":
        data = visium(0.125)
        if change == "other diameter":
            data.uns["spatial"]["slice1"]["scalefactors"]["spot_diameter_fullres"] = 80.0
        elif change == "two libraries":
            data.uns["spatial"]["slice2"] = data.uns["spatial"]["slice1"]
        else:
            data = data[:1].copy()
    data.write_h5ad(tmp_path / "S1.h5ad")
    section = read_section(find_sections(tmp_path)["S1"])
    for xy_px in (read_spots(data).xy_px, read_spots(tmp_path / "S1.h5ad").xy_px, section.xy_px):
        np.testing.assert_array_equal(xy_px, data.obsm["spatial"])


def test_anndata_without_obs_columns(tmp_path: Path) -> None:
    data = ad.AnnData(np.ones((2, 1), dtype=np.float32), obsm={"spatial": np.array([[1, 2], [3, 4]])})
    assert read_spots(data).xy_px.tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("spatial", [None, np.full((3, 2), np.nan), np.ones((3, 3))])
def test_anndata_without_coordinates_is_refused(tmp_path: Path, spatial: np.ndarray | None) -> None:
    data = anndata_of()
    del data.obsm["spatial"]
    if spatial is not None:
        data.obsm["spatial"] = spatial
    data.write_h5ad(tmp_path / "map.h5ad")
    with pytest.raises(SectionError, match=r"map\.h5ad.*obsm\['spatial'\]"):
        read_spots(tmp_path / "map.h5ad")


@pytest.mark.parametrize(
    ("columns", "scale"),
    [
        (("x_pixel", "y_pixel"), 1.0),
        (("pxl_col_in_fullres", "pxl_row_in_fullres"), 1.0),
        (("x_centroid", "y_centroid"), 0.5),
    ],
)
def test_coordinates_in_obs_columns(tmp_path: Path, columns: tuple[str, str], scale: float) -> None:
    obs = pd.DataFrame({columns[0]: [10.0, 30.0], columns[1]: [20, 40], "id": [7, 8]}, index=["c1", "c2"])
    ad.AnnData(np.ones((2, 1), np.float32), obs=obs).write_h5ad(tmp_path / "cells.h5ad")
    spots = read_spots(tmp_path / "cells.h5ad", mpp=0.5)
    assert spots.xy_px.tolist() == [[10 / scale, 20 / scale], [30 / scale, 40 / scale]]
    assert spots.id.tolist() == ["c1", "c2"], "obs_names are the names, whatever obs holds"
    assert f"{columns[0]}, {columns[1]} as x, y in" in spots.coordinates
    if scale != 1.0:
        with pytest.raises(UnknownScale, match="give --mpp"):
            read_spots(tmp_path / "cells.h5ad")


def test_positions_that_squidpys_guide_to_xenium_copies_are_in_micrometers(tmp_path: Path) -> None:
    obs = pd.DataFrame({"x_centroid": [10.0, 30.0], "y_centroid": [20.0, 40.0]}, index=["c1", "c2"])
    data = ad.AnnData(np.ones((2, 1), np.float32), obs=obs, obsm={"spatial": obs.to_numpy()})
    data.write_h5ad(tmp_path / "cells.h5ad")
    for source in (tmp_path / "cells.h5ad", data):
        spots = read_spots(source, mpp=0.5)
        assert spots.xy_px.tolist() == [[20, 40], [60, 80]] and "µm" in spots.coordinates
        with pytest.raises(UnknownScale, match="give --mpp"):
            read_spots(source)
    (source,) = find_sections(tmp_path / "cells.h5ad").values()
    assert read_section(source).xy_px is None, "a section's slide has no scale yet"
    data.obsm["spatial"] = data.obsm["spatial"] / 0.5
    assert read_spots(data, mpp=0.25).xy_px.tolist() == [[20, 40], [60, 80]]


def test_bytes_in_parquet_are_names_or_left_out(tmp_path: Path) -> None:
    """Names as Xenium 1 has them, and geometries of GeoParquet."""
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"cell_id": [b"a-1", "é".encode()], "x": [1.0, 2.0], "y": [3.0, 4.0],
                          "geometry": [b"\x01\xff", None], "note": [b"t", None]})  # fmt: skip
    frame.to_parquet(tmp_path / "c.parquet")
    for source in (tmp_path / "c.parquet", frame):
        spots = read_spots(source)
        assert spots.id.tolist() == ["a-1", "é"]
        assert spots.table.columns.tolist() == ["cell_id", "x", "y", "note"]
        assert spots.table["note"].tolist() == ["t", None]


QUPATH = (
    "Image\tObject ID\tName\tClassification\tCentroid X µm\tCentroid Y µm\tNucleus: Area µm^2\n"
    "a.svs\t5d1f-1\t\tTumor\t12.5\t30\t41.5\na.svs\t5d1f-2\t\tStroma\t100\t7.25\t12\n"
)


@pytest.mark.parametrize("micro", ["\u00b5m", "\u03bcm", "um"])
def test_measurements_of_qupath_are_in_micrometers(tmp_path: Path, micro: str) -> None:
    (tmp_path / "m.tsv").write_text(QUPATH.replace("µm", micro))
    spots = read_spots(tmp_path / "m.tsv", mpp=0.25)
    assert spots.xy_px.tolist() == [[50.0, 120.0], [400.0, 29.0]]
    assert spots.id.tolist() == ["5d1f-1", "5d1f-2"]
    assert spots.table["Classification"].tolist() == ["Tumor", "Stroma"]
    assert "as x, y in µm, by 0.25 µm/px of the slide" in spots.coordinates
    (tmp_path / "px.tsv").write_text(QUPATH.replace("Centroid X µm", "Centroid X px").replace("Y µm", "Y px"))
    assert read_spots(tmp_path / "px.tsv").xy_px.tolist() == [[12.5, 30.0], [100.0, 7.25]]


def test_micrometers_become_pixels_by_the_scale_of_each_axis(tmp_path: Path) -> None:
    """As QuPath makes them of pixels: its centroids are x times the pixel's width and y times its height."""
    per_cm = (21910, 21975)  # as a scanner's whose axes differ by 0.3 %
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.zeros((40, 60, 3), np.uint8),
        photometric="rgb",
        metadata=None,
        resolution=per_cm,
        resolutionunit=3,
    )
    width, height = (1e4 / dots for dots in per_cm)
    px = np.array([[50_000.0, 100], [50_000, 37_000]])
    rows = [f"c{i},{x * width},{y * height}" for i, (x, y) in enumerate(px.tolist())]
    (tmp_path / "q.csv").write_text("\n".join(["Object ID,Centroid X µm,Centroid Y µm", *rows, ""]))
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.mpp_xy == pytest.approx((width, height), rel=1e-12)
        assert slide.mpp == pytest.approx((width + height) / 2, rel=1e-12)
        spots = resolve_spots(Job(slide.path, spots=tmp_path / "q.csv"), slide)
        assert isinstance(spots, Spots)
        np.testing.assert_allclose(spots.xy_px, px, atol=1e-6)
        assert "by 0.4564 x 0.4551 µm/px of the slide" in spots.coordinates
        job = Job(slide.path, spots=tmp_path / "q.csv", options=RunOptions(mpp=0.5))
        one = resolve_spots(job, slide)
        assert isinstance(one, Spots)
        np.testing.assert_allclose(one.xy_px, px * (width, height) / 0.5, atol=1e-6)


def test_measurements_of_several_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").write_text(QUPATH + "b.svs\tx\t\t\t1\t2\t3\n")
    with pytest.raises(SectionError, match=r"measurements of a\.svs and of b\.svs"):
        read_spots(tmp_path / "m.tsv", mpp=0.25)


def test_a_parquet_that_declares_too_much_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.DataFrame(np.zeros((300_000, 3), np.int8), columns=["id", "x_px", "y_px"])
    frame.to_parquet(tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 20_000
    monkeypatch.setattr(parquet_module, "MAX_TABLE_BYTES", 5_000_000)
    monkeypatch.setattr(pd, "read_parquet", lambda *words, **options: pytest.fail("it was read"))
    with pytest.raises(SectionError, match="declares 300,000 rows of 3 columns"):
        read_spots(tmp_path / "bomb.parquet")


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    frame = pd.read_csv(io.StringIO(SPACE_RANGER_2))
    frame.to_parquet(tmp_path / "tissue_positions.parquet")
    spots = read_spots(tmp_path)
    assert spots.variant == "Visium HD"
    assert spots.xy_px.tolist() == [[9811.0, 8513.0], [9250.0, 4205.5]]


def test_frame_in_memory_names_its_rows() -> None:
    frame = pd.DataFrame({"x_px": [1.0, 2.0], "y_px": [3, 4]}, index=["p", "q"])
    assert read_spots(frame).id.tolist() == ["p", "q"]
    frame.loc["q", "x_px"] = np.nan
    with pytest.raises(SectionError, match="row 2: column 'x_px' is 'nan'"):
        read_spots(frame)


# Real tables


def shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"reference data {'/'.join(parts)} is not beside the checkout")
    return path


@pytest.mark.parametrize(
    ("folder", "rows", "kept", "variant"),
    [
        ("squidpy_test", 100, 100, "Space Ranger 1"),
        ("sfe_sample01", 12, 12, "Space Ranger 2"),
        ("spatial_gradients", 4992, 1937, "Space Ranger 1"),
    ],
)
def test_real_space_ranger_folders_agree_with_pandas(folder: str, rows: int, kept: int, variant: str) -> None:
    path = shared("visium", folder)
    spots, everything = read_spots(path), read_spots(path, all_spots=True)
    assert (len(spots), len(everything), spots.variant) == (kept, rows, variant)
    header = None if variant.endswith("1") else 0
    table = pd.read_csv(everything.path, header=header)
    assert np.array_equal(everything.xy_px, table.iloc[:, [5, 4]].to_numpy(dtype=np.float64))
    factors = json.loads((path / "spatial" / "scalefactors_json.json").read_text())
    assert spots.spot_diameter_px == factors["spot_diameter_fullres"]


def test_real_legacy_tables_agree_with_pandas() -> None:
    for path in sorted(shared("her2st", "spots").glob("*.tsv"))[:6]:
        spots, table = read_spots(path), pd.read_csv(path, sep="\t", float_precision="round_trip")
        assert np.array_equal(spots.xy_px, table[["pixel_x", "pixel_y"]].to_numpy())
        assert spots.id.tolist() == (table.x.astype(str) + "x" + table.y.astype(str)).tolist()


def test_anndata_keeps_the_types_of_its_columns() -> None:
    data = anndata_of()
    data.obs["cluster"] = pd.Categorical(["0", "1", "0"])
    data.obs["label"] = ["1", "2", "3"]
    table = read_spots(data).table
    assert table["cluster"].tolist() == ["0", "0"] and table["label"].tolist() == ["1", "3"]
    assert table["array_row"].tolist() == [1, 3] and table["array_row"].dtype.kind == "i"


def test_a_frame_without_a_name_for_a_spot_is_refused() -> None:
    with pytest.raises(SectionError, match="row 2: the spot has no name"):
        read_spots(pd.DataFrame({"barcode": ["a", None], "x_px": [1, 2], "y_px": [3, 4]}))
