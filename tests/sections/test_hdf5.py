"""Hostile `.h5ad` files: maps, sections and spot tables that lead out of the file, never end, or overflow."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hostile_hdf5 import ENDLESS, HUGE, LEADS_OUT
from synthetic_maps import write_counts_map

from mclst.runtime.errors import InputError, describe_error
from mclst.runtime.expression_map.measured import read_map as evaluated_map
from mclst.runtime.expression_map.reader import open_map
from mclst.sections import find_sections, read_section
from mclst.sections.tables.spots import read_spots

IMAGE = "uns/spatial/made/images/hires"


def read_map(path: Path) -> None:
    with open_map(path) as expression_map:
        assert np.isfinite(expression_map.expression[0]).all()


def read_one_section(path: Path) -> None:
    (source,) = find_sections(path).values()
    read_section(source)


READERS: dict[str, Callable[[Path], object]] = {
    "map": read_map,
    "section": read_one_section,
    "spots": read_spots,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A map, which is a section and a spot table too."""
    made = tmp_path / "made.h5ad"
    write_counts_map(made)
    for read in READERS.values():
        read(made)
    return made


def refusal(path: Path, reader: str) -> str:
    with pytest.raises(Exception) as caught:
        READERS[reader](path)
    sentence, code = describe_error(caught.value)
    assert code == 4, caught.value
    assert str(path) in sentence and "\n" not in sentence
    return sentence


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["obsm/spatial", "obs", "obs/nearest_distance", "X", IMAGE])
@pytest.mark.parametrize("change", LEADS_OUT)
def test_m1_a_file_that_leads_out_of_itself_is_refused(
    path: Path, tmp_path: Path, reader: str, name: str, change: str
) -> None:
    other = shutil.copy(path, tmp_path / "other.h5ad")
    with h5py.File(path, "r+") as file:
        LEADS_OUT[change](file, name, Path(other))
    assert ("is a link" if "link" in change else "kept in other files") in refusal(path, reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("way", ["column-order", "categories"])
def test_m1_attributes_that_lead_out_are_refused(path: Path, tmp_path: Path, reader: str, way: str) -> None:
    """AnnData follows names in `column-order`, and before 0.8 the reference in `categories`, anywhere."""
    (tmp_path / "secret").write_bytes(b"root:x:0:0" * 100)
    with h5py.File(path, "r+") as file:
        n = len(file["X"])
        file.create_dataset("outside", (n,), "u1", external=[(str(tmp_path / "secret"), 0, n)])
        file["inside"] = np.zeros(n, np.uint8)
        outside = file["outside"].ref
        addresses = [h5py.h5o.get_info(file[name].id).addr for name in ("outside", "inside")]
    if way == "categories":  # no link leads to the data, only the reference
        before, after = (struct.pack("<Q", address) for address in addresses)
        content = path.read_bytes()
        assert content.count(before) == 1
        path.write_bytes(content.replace(before, after))
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        obs.attrs["column-order"] = ["/outside"] if way == "column-order" else ["codes"]
        obs.attrs["encoding-version"] = "0.1.0"
        obs["codes"] = np.zeros(n, np.int8)
        obs["codes"].attrs["categories"] = outside
    assert "kept in other files" in refusal(path, reader)


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix])
def test_a_sparse_matrix_that_leads_out_of_its_memory_is_refused(path: Path, form: Any) -> None:
    """scipy reads and writes wherever such numbers point, which crashed or gave other counts."""
    data = ad.read_h5ad(path)
    data.X = form(np.rint(data.X))
    data.write_h5ad(path)
    for read in (*READERS.values(), evaluated_map):
        read(path)
    for part, value in (("indices", 2_000_000_000), ("indices", -5), ("indptr", 10**9), ("indptr", -7)):
        with h5py.File(path, "r+") as file:
            numbers = file["X"][part][:]
            kept, middle = numbers.copy(), len(numbers) // 2
            numbers[middle] = value
            file["X"][part][:] = numbers
        for reader in ("map", "section"):
            assert part in refusal(path, reader)
        with pytest.raises(InputError, match=f"is not a map .{part}"):
            evaluated_map(path)
        with h5py.File(path, "r+") as file:
            file["X"][part][:] = kept


@pytest.mark.parametrize("change", LEADS_OUT)
def test_m1_a_map_to_evaluate_that_leads_out_of_itself_is_refused(
    path: Path, tmp_path: Path, change: str
) -> None:
    other = shutil.copy(path, tmp_path / "other.h5ad")
    with h5py.File(path, "r+") as file:
        LEADS_OUT[change](file, "X", Path(other))
    with pytest.raises(InputError, match="is a link" if "link" in change else "kept in other files"):
        evaluated_map(path)


@pytest.mark.filterwarnings("ignore:Element:anndata.OldFormatWarning")
def test_categories_by_reference_are_read(tmp_path: Path) -> None:
    """Files of AnnData before 0.8 have them."""
    table = pd.DataFrame({"region": pd.Categorical(["b", "a", "b"])}, index=["s1", "s2", "s3"])
    path = tmp_path / "old.h5ad"
    ad.AnnData(np.ones((3, 2), np.float32), obs=table, obsm={"spatial": np.ones((3, 2))}).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        codes, categories = obs["region/codes"][:], obs["region/categories"][:]
        del obs["region"]
        obs.attrs["encoding-version"] = "0.1.0"
        obs["__categories/region"] = categories
        obs["region"] = codes
        obs["region"].attrs["categories"] = obs["__categories/region"].ref
    assert read_spots(path).table["region"].tolist() == ["b", "a", "b"]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("change", ENDLESS)
def test_l3_objects_without_end_are_refused(path: Path, reader: str, change: str) -> None:
    with h5py.File(path, "r+") as file:
        ENDLESS[change](file, "uns/mclst", path)
    assert "in a circle, or over 30,000" in refusal(path, reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["obsm/spatial", "X", IMAGE, "obs/nearest_distance", "uns/mclst/versions"])
@pytest.mark.parametrize("change", HUGE)
def test_l3_more_than_a_file_can_hold_is_refused(path: Path, reader: str, name: str, change: str) -> None:
    with h5py.File(path, "r+") as file:
        HUGE[change](file, name, path)
    assert "bytes or more in a file of" in refusal(path, reader)


@pytest.mark.parametrize(
    ("reader", "name", "size"),
    [
        ("map", IMAGE, 513 << 20),
        ("map", "uns/mclst/versions", 17 << 20),
        ("map", "obsm/spatial", 17 << 20),
        ("map", "obs", 4100 << 20),
        ("section", "X", 17 << 20),
        ("section", "obsm/spatial", 17 << 20),
        ("spots", "obsm/spatial", 17 << 20),
        ("spots", "uns/spatial/made/scalefactors/spot_diameter_fullres", 17 << 20),
    ],
)
def test_l3_more_than_its_kind_takes_is_refused(path: Path, reader: str, name: str, size: int) -> None:
    """In a file large enough to hold it."""
    with h5py.File(path, "r+") as file:
        file["padding"] = np.zeros(4 << 20, np.uint8)
        where = f"{name}/nearest_distance" if name == "obs" else name
        attributes = dict(file[where].attrs)
        del file[where]
        file.create_dataset(where, (size // 1000, 1000), "u1", chunks=(1000, 1000), compression="gzip")
        file[where].attrs.update(attributes)
    assert "are expected" in refusal(path, reader)


def test_l3_a_name_that_would_widen_all_others_is_refused(tmp_path: Path) -> None:
    table = pd.DataFrame(index=["s1", "s2", "x" * 5000])
    path = tmp_path / "long.h5ad"
    ad.AnnData(np.ones((3, 2), np.float32), obs=table, obsm={"spatial": np.ones((3, 2))}).write_h5ad(path)
    for reader in ("section", "spots"):
        assert "a name of 5,000 characters" in refusal(path, reader)


def test_a_space_ranger_matrix_that_leads_out_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "w") as file:
        file["matrix"] = h5py.ExternalLink("/nowhere", "/matrix")
    with pytest.raises(ValueError, match="matrix is a link"):
        find_sections(path)
