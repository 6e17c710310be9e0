"""Names, columns and settings as a .h5ad can hold them."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from map_writing import spots_of, write_all

from mclst.runtime.expression_map.h5ad_layout import H5adImage
from mclst.runtime.expression_map.h5ad_values import storable_column, storable_names, storable_tree


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
    image.put("obs", pd.DataFrame({name: [1.0] for name in storable}, index=["i"]))
    image.close()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.one_of(st.text(max_size=5), st.none(), st.integers(), st.floats()), min_size=1, max_size=5)
)
def test_any_cells_become_a_column_that_reads_back(cells):
    stored = storable_column(pd.Series(cells, dtype=object))
    image = H5adImage((1, 1))
    image.put("column", stored)
    image.close()
    if stored.dtype.kind in "iuf":
        given_numbers = [np.nan if cell is None else float(cell) for cell in cells]
        np.testing.assert_array_equal(given_numbers, stored.astype(float))
    else:
        assert [isinstance(cell, str) for cell in stored] == [True] * len(cells)


def test_masked_columns_become_plain_ones():
    assert storable_column(pd.Series([1, 2], dtype="Int64")).dtype == np.int64
    holed = storable_column(pd.Series([1, None], dtype="Int64"))
    assert holed[0] == 1.0 and np.isnan(holed[1])
    assert storable_column(pd.Series([True, False], dtype="boolean")).dtype == bool
    assert storable_column(pd.Series(["a", None], dtype="string")).tolist() == ["a", ""]
    assert storable_column(pd.Series(["1e5", "007"])).tolist() == ["1e5", "007"]
    assert storable_column(pd.Series([3, 4], dtype=object)).dtype == np.int64


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
