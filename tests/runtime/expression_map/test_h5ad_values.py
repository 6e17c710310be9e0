"""Names, columns and settings as a .h5ad can hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from map_writing import spots_of, write_all

from mclst.runtime.expression_map.h5ad_elements import write_element
from mclst.runtime.expression_map.h5ad_layout import H5adImage
from mclst.runtime.expression_map.h5ad_values import storable_column, storable_names, storable_tree
from mclst.sections.columns import Columns


def test_odd_columns_are_kept_under_names_that_can_be_stored(tmp_path):
    n = 4
    table = pd.DataFrame(
        [["a", 1, "007", 1.5, "", None, "x\0y", 2, 3, 4]] * n,
        columns=[
            "_index",
            "pixel/x",
            "zeros",
            "number",
            "",
            "none",
            "nul",
            "effective_k",
            "pixel_x",
            "in_tissue",
        ],
    )
    table["barcode"] = ["0x0", "1x0", "2x0", "3x0"]
    path = write_all(tmp_path / "m.h5ad", np.ones((n, 2), np.float32), spots=spots_of(n, table, array=False))
    obs = anndata.read_h5ad(path).obs
    assert obs["index"].tolist() == ["a"] * n
    assert obs["pixel_x"].tolist() == [3] * n and obs["pixel_x_2"].tolist() == [1] * n
    assert obs["zeros"].tolist() == ["007"] * n
    assert obs["number"].tolist() == [1.5] * n
    assert obs["column_5"].tolist() == [""] * n and obs["none"].tolist() == [""] * n
    assert obs["nul"].tolist() == ["x\ufffdy"] * n
    assert obs["effective_k"].tolist() == [1.0] * n and obs["effective_k_2"].tolist() == [2] * n
    assert obs["in_tissue"].tolist() == [4] * n
    assert "array_row" not in obs
    assert obs["barcode"].tolist() == list(obs.index)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.text(max_size=6) | st.integers(0, 3) | st.sampled_from(["_index", "", "/", ".", "a", "a_2"]),
        max_size=8,
    )
)
@pytest.mark.slow
def test_any_column_names_become_unique_and_storable(names):
    storable = storable_names(names, reserved=["a"])
    assert len(set(storable)) == len(names) and "a" not in storable
    image = H5adImage((1, 1))
    image.put("obs", Columns(np.array(["i"], object), {name: np.ones(1) for name in storable}))
    image.close()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.one_of(st.text(max_size=5), st.none(), st.integers(), st.floats()), min_size=1, max_size=5)
)
def test_any_cells_become_a_column_that_reads_back(cells):
    stored = storable_column(np.array(cells, dtype=object))
    image = H5adImage((1, 1))
    image.put("column", stored)
    image.close()
    if stored.dtype.kind in "iuf":
        given_numbers = [np.nan if cell is None else float(cell) for cell in cells]
        np.testing.assert_array_equal(given_numbers, stored.astype(float))
    else:
        assert [isinstance(cell, str) for cell in stored] == [True] * len(cells)


TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=4)
INTEGERS = st.integers(-(2**40), 2**40)
KINDS: dict[str, tuple[st.SearchStrategy[Any], Any, Any]] = {
    "int64": (INTEGERS, "int64", "int64"),
    "uint8": (st.integers(0, 255), "uint8", "uint8"),
    "float64": (st.floats(), "float64", "float64"),
    "float32": (st.floats(width=32), "float32", "float32"),
    "bool": (st.booleans(), "bool", "bool"),
    "text": (TEXT, object, object),
    "text with gaps": (TEXT | st.none(), object, object),
    "string": (TEXT | st.none(), "string", object),
    "category": (TEXT | st.none(), "category", object),
    "masked": (INTEGERS, "Int64", "int64"),
    "masked flags": (st.booleans(), "boolean", "bool"),
    "integers as objects": (INTEGERS, object, "int64"),
}
"""Cells of a column, its dtype in a table, and the dtype that a map keeps."""


@st.composite
def tables(draw):
    """A DataFrame, and the one that a map keeps of it."""
    rows, given, kept = draw(st.integers(1, 4)), {}, {}
    for name in draw(st.lists(st.sampled_from(sorted(KINDS)), unique=True)):
        cells, dtype, plain = KINDS[name]
        column = draw(
            st.lists(cells, min_size=rows, max_size=rows).filter(lambda cells: cells[0] is not None)
        )
        given[name] = pd.Series(column, dtype=dtype)
        if plain is object:
            column = ["" if cell is None else cell for cell in column]
        kept[name] = pd.Series(column, dtype=plain)
    return pd.DataFrame(given, index=range(rows)), pd.DataFrame(kept, index=range(rows))


@settings(max_examples=60, deadline=None)
@given(tables())
def test_anndata_reads_a_table_as_if_anndata_had_written_it(frames):
    table, kept = frames
    names = np.array([f"spot{row}" for row in table.index], dtype=object)
    stored = {name: storable_column(column) for name, column in Columns.of(table).items()}
    with h5py.File("tables.h5ad", "w", driver="core", backing_store=False) as file:
        write_element(file, "ours", Columns(names, stored))
        anndata.io.write_elem(file, "theirs", kept.set_axis(names))
        pd.testing.assert_frame_equal(*(anndata.io.read_elem(file[name]) for name in ("ours", "theirs")))


def test_columns_become_a_frame_and_a_frame_comes_back_as_it_is():
    frame = pd.DataFrame({"a": pd.Categorical(["x", "y"])}, index=["s", "t"])
    assert Columns.of(frame).frame is frame
    holed = storable_column(Columns.of(pd.DataFrame({"a": pd.array([1, None], "Int64")}))["a"])
    np.testing.assert_array_equal(holed, [1.0, np.nan])
    made = Columns(range(2), {"a": lambda: np.arange(2), "b": np.array(["x", "y"], object)}).frame
    pd.testing.assert_frame_equal(made, pd.DataFrame({"a": [0, 1], "b": ["x", "y"]}))


def test_settings_of_the_run_come_back(tmp_path):
    run = {
        "bundle": {"sha256": "ab", "path": Path("/b"), "none": None},
        "tiles/s": 12.5,
        "workers": np.int64(3),
        "exact": True,
        "providers": ["cpu", "cuda"],
        "seconds": [1.0, 2.5],
        "failed": [(3, "bad\0tile"), (9, "gone")],
        "empty": [],
        "huge": 2**70,
    }
    path = write_all(tmp_path / "m.h5ad", np.ones((3, 2), np.float32), run=run)
    settings_read = anndata.read_h5ad(path).uns["mclst"]
    assert (
        settings_read["bundle"]["sha256"] == "ab"
        and settings_read["bundle"]["path"] == "/b"
        and "none" not in settings_read["bundle"]
    )
    assert settings_read["tiles_s"] == 12.5 and settings_read["workers"] == 3 and settings_read["exact"]
    assert settings_read["providers"].tolist() == ["cpu", "cuda"] and settings_read["seconds"].tolist() == [
        1.0,
        2.5,
    ]
    assert settings_read["failed"] == r'[[3, "bad\u0000tile"], [9, "gone"]]'
    assert settings_read["huge"] == str(2**70)
    with pytest.raises(TypeError, match="odd is a set"):
        storable_tree({"odd": {1, 2}})
