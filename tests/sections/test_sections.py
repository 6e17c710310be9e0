"""Measured sections: finding, choosing and reading them, compared with pandas, scipy and scanpy."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profile import quick

from mclst.sections import (
    Section,
    SectionError,
    choose_sections,
    find_sections,
    match_genes,
    read_gene_list,
    read_section,
)
from mclst.sections.hdf5 import open_hdf5

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
COUNTS = "\tA1BG\tTP53\tMYC\n10x13\t1\t0\t3\n9x7\t0\t2.5\t0\n"
SPOTS = (
    "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n"
    "9\t7\t9.1\t7.2\t90.5\t70\t1\n10\t13\t10\t13\t100\t130\t0\n1\t1\t1\t1\t5\t5\t1\n"
)


def shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"reference data {'/'.join(parts)} is not beside the checkout")
    return path


def legacy(tmp_path: Path, counts: str = COUNTS, spots: str | None = SPOTS, name: str = "C4") -> Path:
    for folder in ("counts", "spots", "images"):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "counts" / f"{name}.tsv").write_text(counts)
    if spots is not None:
        (tmp_path / "spots" / f"{name}_selection.tsv").write_text(spots)
    return tmp_path


def read_only_section(path: Path) -> Section:
    (source,) = find_sections(path).values()
    return read_section(source)


# Legacy ST


def test_legacy_section_joins_by_array_coordinates(tmp_path: Path) -> None:
    (legacy(tmp_path) / "images" / "C4.jpg").write_bytes(b"a picture")
    section = read_only_section(tmp_path)
    assert (section.name, section.counts_from) == ("C4", "counts")
    assert section.spot.tolist() == ["10x13", "9x7"]
    assert section.genes.tolist() == ["A1BG", "TP53", "MYC"]
    assert section.counts.dtype == np.float32 and sp.issparse(section.counts)
    assert section.counts.toarray().tolist() == [[1, 0, 3], [0, 2.5, 0]]
    assert section.array_xy is not None and section.array_xy.tolist() == [[10, 13], [9, 7]]
    assert section.xy_px is not None and section.xy_px.tolist() == [[100, 130], [90.5, 70]]
    assert section.image == tmp_path / "images" / "C4.jpg"


def test_legacy_section_without_spots_or_with_missing_rows(tmp_path: Path) -> None:
    section = read_only_section(legacy(tmp_path, spots=None))
    assert section.xy_px is None
    assert section.array_xy is not None and section.array_xy.tolist() == [[10, 13], [9, 7]]
    section = read_only_section(legacy(tmp_path, spots="\n".join(SPOTS.split("\n")[:2]) + "\n"))
    assert section.xy_px is not None
    assert np.isnan(section.xy_px[0]).all() and section.xy_px[1].tolist() == [90.5, 70]
    with pytest.raises(SectionError, match="no row has its coordinates"):
        read_only_section(legacy(tmp_path, spots=SPOTS.split("\n")[0] + "\n1\t1\t1\t1\t5\t5\t1\n"))


@pytest.mark.parametrize(
    "variant", ["gzip", "r-header", "quotes", "crlf", "blank-lines", "published-names", "flat"]
)
def test_legacy_variants_read_the_same(tmp_path: Path, variant: str) -> None:
    plain, root = tmp_path / "plain", tmp_path / "varied"
    plain.mkdir()
    root.mkdir()
    expected = read_only_section(legacy(plain))
    text = COUNTS
    if variant == "r-header":
        text = COUNTS.removeprefix("\t")
    if variant == "quotes":
        text = '"A1BG"\t"TP53"\t"MYC"\n"10x13"\t1\t0\t3\n"9x7"\t0\t2.5\t0\n'
    if variant == "crlf":
        text = COUNTS.replace("\n", "\r\n")
    if variant == "blank-lines":
        text = COUNTS.replace("\n", "\n\n")
    legacy(root, text)
    counts, spots = root / "counts" / "C4.tsv", root / "spots" / "C4_selection.tsv"
    if variant in ("gzip", "crlf"):
        counts.with_suffix(".tsv.gz").write_bytes(gzip.compress(text.encode()))
        counts.unlink()
    if variant == "published-names":
        counts.parent.rename(root / "ST-cnts")
        spots.parent.rename(root / "ST-spotfiles")
        (root / "ST-imgs" / "C" / "C4").mkdir(parents=True)
        (root / "ST-imgs" / "C" / "C4" / "HE_1.jpg").write_bytes(b"a picture")
    if variant == "flat":
        counts.rename(root / "C4.tsv")
        spots.rename(root / "C4_selection.tsv")
        counts.parent.rmdir()
        (root / "notes.tsv").write_text("not\ta section\n")
    section = read_only_section(root)
    assert section.spot.tolist() == expected.spot.tolist()
    assert section.genes.tolist() == expected.genes.tolist()
    assert np.array_equal(section.counts.toarray(), expected.counts.toarray())
    assert np.array_equal(section.xy_px, expected.xy_px)  # type: ignore[arg-type]
    assert (section.image is not None) == (variant == "published-names")


def test_one_counts_file_or_its_folder_is_enough(tmp_path: Path) -> None:
    legacy(tmp_path)
    for path in (tmp_path / "counts" / "C4.tsv", tmp_path / "counts", tmp_path):
        assert read_only_section(path).xy_px is not None


def test_paths_relative_to_the_section_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (legacy(tmp_path) / "images" / "C4.jpg").write_bytes(b"a picture")
    monkeypatch.chdir(tmp_path / "counts")
    for path in (".", "C4.tsv", ".."):
        (source,) = find_sections(path).values()
        assert source.image is not None and read_section(source).xy_px is not None
    outs = space_ranger(tmp_path, "h5")
    (outs / "P7.tif").write_bytes(b"a picture")
    monkeypatch.chdir(outs)
    (source,) = find_sections(".").values()
    assert (source.name, source.image) == ("P7", outs / "P7.tif")


@pytest.mark.parametrize(
    ("counts", "fragment"),
    [
        ("", "empty"),
        ("\tA\tB\n", "no rows"),
        ("A\n1x1\n", "line 2 has 1 cells"),
        ("\tA\tB\n1x1\t1\t2\n2x2\t1\n", "line 3 has 1 counts for 2 genes"),
        ("\tA\tB\n1x1\t1\t2\n2x2\t1\t2\t3\n", "line 3 has 3 counts for 2 genes"),
        ("\tA\tB\n1x1\t1\t2\n2x2\t1\t\n", "line 3: the count of B is ''"),
        ("\tA\tB\n1x1\t1\tabc\n", "line 2: the count of B is 'abc'"),
        ("\tA\tB\n1x1\t1\tnan\n", "spot '1x1' (row 1), gene 'B' is nan"),
        ("\tA\tB\n1x1\t1\t-2\n", "spot '1x1' (row 1), gene 'B' is -2"),
        ("\tA\tB\n1x1\t1\t1\n2x2\t1e39\t2\n", "spot '2x2' (row 2), gene 'A' is 1e+39"),
        ("\tA\tA\n1x1\t1\t2\n", "gene 'A' appears more than once"),
        ("\tA\tB\n1x1\t1\t2\n1x1\t1\t2\n", "spot '1x1' is in rows 1 and 2"),
        ("\tA\tB\n10.1x12.9\t1\t2\n", "'10.1x12.9'; round it"),
        ("\tA\tB\nAAAC-1\t1\t2\n", "'AAAC-1'; name it XxY"),
        ("\t1x1\t2x2\nTP53\t1\t2\n", "transpose the table"),
        ("\tA\tB\n1x1\t1\t2\x00\n", "NUL"),
        (",A,B\n1x1,1,2\n", "tab-separated"),
    ],
)
def test_damaged_counts_are_refused(tmp_path: Path, counts: str, fragment: str) -> None:
    with pytest.raises(SectionError) as caught:
        read_only_section(legacy(tmp_path, counts))
    assert fragment in str(caught.value) and "C4.tsv" in str(caught.value)


def test_truncated_gzip_is_refused(tmp_path: Path) -> None:
    legacy(tmp_path)
    (tmp_path / "counts" / "C4.tsv").rename(tmp_path / "counts" / "C4.tsv.gz")
    (tmp_path / "counts" / "C4.tsv.gz").write_bytes(gzip.compress(COUNTS.encode())[:-9])
    with pytest.raises(SectionError, match=r"C4\.tsv\.gz: the file cannot be read"):
        read_only_section(tmp_path)


def test_duplicate_files_are_refused(tmp_path: Path) -> None:
    legacy(tmp_path)
    (tmp_path / "images" / "C4.jpg").write_bytes(b"")
    (tmp_path / "images" / "C4.png").write_bytes(b"")
    with pytest.raises(SectionError, match="images of section C4"):
        find_sections(tmp_path)
    (tmp_path / "images" / "C4.png").unlink()
    (tmp_path / "counts" / "C4.tsv.gz").write_bytes(gzip.compress(COUNTS.encode()))
    with pytest.raises(SectionError, match="counts of section C4"):
        find_sections(tmp_path)


# Space Ranger

POSITIONS = """barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres
{b}-1,1,3,5,70,50
{a}-1,1,2,4,60,40
{c}-1,0,1,1,10,10
""".format(a="A" * 16, b="C" * 16, c="G" * 16)
FEATURES = [
    ("ENSG1", "TP53", "Gene Expression"),
    ("ENSG2", "MYC", "Gene Expression"),
    ("ENSG3", "CD3", "Antibody Capture"),
]


def space_ranger(tmp_path: Path, form: str, features: list[tuple[str, str, str]] = FEATURES) -> Path:
    """Write two barcodes x three features, in the order A…, C…; positions are in reverse order."""
    outs = tmp_path / "P7"
    (outs / "spatial").mkdir(parents=True)
    (outs / "spatial" / "tissue_positions.csv").write_text(POSITIONS)
    barcodes = [f"{'A' * 16}-1", f"{'C' * 16}-1"]
    by_feature = sp.csc_matrix(np.array([[1, 0], [4, 2], [9, 9]]))
    if form == "h5":
        with h5py.File(outs / "filtered_feature_bc_matrix.h5", "w") as file:
            group = file.create_group("matrix")
            group["barcodes"] = np.array(barcodes, dtype="S")
            for name in ("data", "indices", "indptr"):
                group[name] = getattr(by_feature, name)
            group["shape"] = np.array(by_feature.shape, dtype=np.int32)
            for name, values in zip(("id", "name", "feature_type"), zip(*features, strict=True), strict=True):
                group[f"features/{name}"] = np.array(values, dtype="S")
        return outs
    folder = outs / "filtered_feature_bc_matrix"
    folder.mkdir()
    scipy.io.mmwrite(folder / "matrix.mtx", by_feature)
    (folder / "barcodes.tsv").write_text("\n".join(barcodes) + "\n")
    (folder / "features.tsv").write_text("".join("\t".join(feature) + "\n" for feature in features))
    if form == "mtx.gz":
        for file in list(folder.iterdir()):
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    return outs


@pytest.mark.parametrize("form", ["h5", "mtx", "mtx.gz"])
def test_space_ranger_joins_by_barcode_and_keeps_genes(tmp_path: Path, form: str) -> None:
    outs = space_ranger(tmp_path, form)
    assert list(find_sections(tmp_path)) == ["P7"]
    section = read_only_section(outs)
    assert section.name == "P7"
    assert section.genes.tolist() == ["TP53", "MYC"]
    assert section.counts.toarray().tolist() == [[1, 4], [0, 2]]
    assert section.xy_px is not None and section.xy_px.tolist() == [[40, 60], [50, 70]]
    assert section.array_xy is not None and section.array_xy.tolist() == [[4, 2], [5, 3]]


def test_a_folder_called_outs_takes_its_parents_name(tmp_path: Path) -> None:
    outs = space_ranger(tmp_path, "h5").rename(tmp_path / "outs")
    assert list(find_sections(outs)) == [tmp_path.name]
    assert list(find_sections(tmp_path)) == [tmp_path.name]


def test_a_barcode_without_coordinates_is_refused(tmp_path: Path) -> None:
    outs = space_ranger(tmp_path, "h5")
    table = outs / "spatial" / "tissue_positions.csv"
    table.write_text("\n".join(line for line in POSITIONS.split("\n") if not line.startswith("A")))
    with pytest.raises(SectionError, match=f"1 of 2 barcodes .* the first is {'A' * 16}-1"):
        read_only_section(outs)


@pytest.mark.parametrize("part", ["indices", "indptr", "data", "barcodes", "shape", "features/name"])
def test_a_damaged_10x_matrix_is_refused(tmp_path: Path, part: str) -> None:
    outs = space_ranger(tmp_path, "h5")
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "r+") as file:
        values = file["matrix"][part][:]
        del file["matrix"][part]
        file["matrix"][part] = values + 7 if part == "indices" else -values if part == "data" else values[:-1]
    with pytest.raises(SectionError, match=r"filtered_feature_bc_matrix\.h5"):
        read_only_section(outs)


@pytest.mark.parametrize(
    ("file", "text", "fragment"),
    [
        ("barcodes.tsv", "AAAA-1\n", "do not belong together"),
        ("features.tsv", "ENSG1\n", "line 1 has no gene name"),
        ("features.tsv", "a\tb\tPeaks\nc\td\tPeaks\ne\tf\tPeaks\n", "no feature is of type"),
        ("matrix.mtx", "not a matrix\n", "cannot be read"),
        (
            "matrix.mtx",
            "%%MatrixMarket matrix coordinate integer general\n3 2 999999999999\n1 1 1\n",
            "claims",
        ),
        (
            "matrix.mtx",
            "%%MatrixMarket matrix coordinate integer general\n999999999 2 1\n1 1 1\n",
            "do not belong together",
        ),
        ("matrix.mtx", "%%MatrixMarket matrix coordinate integer general\n3 2 1\n9 9 1\n", "cannot be read"),
    ],
)
def test_a_damaged_matrix_folder_is_refused(tmp_path: Path, file: str, text: str, fragment: str) -> None:
    outs = space_ranger(tmp_path, "mtx")
    (outs / "filtered_feature_bc_matrix" / file).write_text(text)
    with pytest.raises(SectionError) as caught:
        read_only_section(outs)
    assert fragment in str(caught.value)


def test_a_repeated_symbol_is_refused_only_if_requested(tmp_path: Path) -> None:
    twice = [*FEATURES[:2], ("ENSG3", "MYC", "Gene Expression")]
    section = read_only_section(space_ranger(tmp_path, "h5", twice))
    assert match_genes(section, ["TP53"]).tolist() == [[1], [0]]
    with pytest.raises(SectionError, match="gene MYC appears in section P7 more than once"):
        match_genes(section, ["TP53", "MYC"])


@pytest.mark.parametrize("name", ["squidpy_test", "sfe_sample01"])
def test_real_space_ranger_matrices_agree_with_scanpy(name: str) -> None:
    sc = pytest.importorskip("scanpy")
    folder = shared("visium", name)
    section = read_only_section(folder)
    if name == "squidpy_test":
        data = sc.read_10x_h5(folder / "filtered_feature_bc_matrix.h5")
    else:
        matrix = folder / "filtered_feature_bc_matrix"
        names = pd.read_csv(matrix / "features.tsv", sep="\t", header=None)[1]
        data = ad.AnnData(sp.csr_matrix(scipy.io.mmread(matrix / "matrix.mtx").T))
        data.var_names, data.obs_names = names, (matrix / "barcodes.tsv").read_text().split()
    assert section.spot.tolist() == list(data.obs_names) and section.genes.tolist() == list(data.var_names)
    assert np.array_equal(section.counts.toarray(), data.X.toarray().astype(np.float32))
    positions = pd.read_csv(section_positions(folder), header=None if name == "squidpy_test" else 0)
    expected = (
        positions.set_index(positions.columns[0])
        .loc[section.spot.tolist()]
        .iloc[:, [4, 3]]
        .to_numpy(dtype=float)
    )
    assert np.array_equal(section.xy_px, expected)  # type: ignore[arg-type]


def section_positions(folder: Path) -> Path:
    (path,) = (folder / "spatial").glob("tissue_positions*.csv")
    return path


# AnnData


def anndata_of(counts: np.ndarray) -> ad.AnnData:
    data = ad.AnnData(
        sp.csr_matrix(counts), obs=pd.DataFrame(index=["s1", "s2"]), var=pd.DataFrame(index=["A", "B"])
    )
    data.obsm["spatial"] = np.array([[1.0, 2.0], [3.0, 4.0]])
    return data


def test_anndata_takes_the_counts_layer_before_x(tmp_path: Path) -> None:
    data = anndata_of(np.array([[0.5, 1.5], [0.0, 2.5]]))
    data.write_h5ad(tmp_path / "S1.h5ad")
    data.layers["counts"] = np.array([[5, 15], [0, 25]])
    data.obs["array_row"], data.obs["array_col"] = [1, 2], [3, 4]
    data.write_h5ad(tmp_path / "S2.h5ad")
    first, second = (read_section(source) for source in find_sections(tmp_path).values())
    assert (first.name, first.counts_from, second.name, second.counts_from) == (
        "S1",
        "X",
        "S2",
        "layers['counts']",
    )
    assert first.counts.toarray().tolist() == [[0.5, 1.5], [0, 2.5]] and first.array_xy is None
    assert second.counts.toarray().tolist() == [[5, 15], [0, 25]]
    assert second.array_xy is not None and second.array_xy.tolist() == [[3, 1], [4, 2]]
    assert second.xy_px is not None and second.xy_px.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_raw_counts_are_taken_where_x_holds_none(tmp_path: Path, form: Any) -> None:
    """As CELLxGENE has them: X is normalized, `raw` holds the counts, of more genes."""
    counts = np.array([[5, 15, 1], [0, 25, 0]], np.float32)
    data = anndata_of(counts[:, :2])
    data.X = form(np.log1p(counts[:, :2]))
    raw = ad.AnnData(form(counts), obs=data.obs, var=pd.DataFrame(index=["A", "B", "C"]))
    data.raw = raw
    data.write_h5ad(tmp_path / "S.h5ad")
    section = read_only_section(tmp_path / "S.h5ad")
    assert (section.counts_from, section.genes.tolist()) == ("raw.X", ["A", "B", "C"])
    assert section.counts.toarray().tolist() == counts.tolist()
    raw.X = form(np.log1p(counts))
    data.raw = raw
    data.write_h5ad(tmp_path / "S.h5ad")
    assert read_only_section(tmp_path / "S.h5ad").counts_from == "X"
    data.X = form(np.round(counts[:, :2]))
    data.raw = ad.AnnData(form(counts), obs=data.obs, var=pd.DataFrame(index=["A", "B", "C"]))
    data.write_h5ad(tmp_path / "S.h5ad")
    assert read_only_section(tmp_path / "S.h5ad").counts_from == "X"


def test_unusable_anndata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "S1.h5ad"
    anndata_of(np.array([[1.0, np.nan], [0, 1]])).write_h5ad(path)
    with pytest.raises(SectionError, match=r"spot 's1' \(row 1\), gene 'B' is nan"):
        read_only_section(path)
    anndata_of(np.array([[1.0, 0], [-1, 1]])).write_h5ad(path)
    with pytest.raises(SectionError, match=r"spot 's2' \(row 2\), gene 'A' is -1"):
        read_only_section(path)
    with h5py.File(path, "r+") as file:
        del file["X"]
    with pytest.raises(SectionError, match="neither"):
        read_only_section(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(SectionError, match=r"S1\.h5ad"):
        read_only_section(path)


@pytest.mark.parametrize(
    "error", [RuntimeError("bad heap"), KeyError("x"), AttributeError("y"), OSError("z\nmore")]
)
def test_hdf5_errors_become_one_sentence(tmp_path: Path, error: Exception) -> None:
    h5py.File(tmp_path / "a.h5", "w").close()
    with (
        pytest.raises(SectionError, match=r"a\.h5: the file cannot be read as AnnData") as caught,
        open_hdf5(tmp_path / "a.h5", "AnnData"),
    ):
        raise error
    assert "\n" not in str(caught.value)
    for exhausted in (MemoryError(), ValueError("Unable to open object (memory allocation failed)")):
        with pytest.raises(MemoryError), open_hdf5(tmp_path / "a.h5", "AnnData"):
            raise exhausted


# Finding and choosing


def test_folders_without_or_with_mixed_sections_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SectionError, match="no measured section"):
        find_sections(tmp_path)
    with pytest.raises(SectionError, match="no such file"):
        find_sections(tmp_path / "nowhere")
    legacy(tmp_path)
    (tmp_path / "S1.h5ad").write_bytes(b"")
    with pytest.raises(SectionError, match="AnnData files and legacy ST tables"):
        find_sections(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(SectionError, match="not a measured section"):
        find_sections(tmp_path / "a.txt")


NAMES = ["B1", "A1", "C1", "A2", "case-1", "case-2"]


@pytest.mark.parametrize(
    ("expression", "hold_out", "expected"),
    [
        (None, (), ["A1", "A2", "B1", "C1", "case-1", "case-2"]),
        ("A2-C1", (), ["A2", "B1", "C1"]),
        ("C1, A1", (), ["A1", "C1"]),
        ("A1-A2,A2-B1", (), ["A1", "A2", "B1"]),
        ("case-1", (), ["case-1"]),
        ("C1-case-2", (), ["C1", "case-1", "case-2"]),
        ("case-1-case-2", ("case-2",), ["case-1"]),
        ("A1-C1", ("B1", "case-1"), ["A1", "A2", "C1"]),
    ],
)
def test_choose_sections(expression: str | None, hold_out: tuple[str, ...], expected: list[str]) -> None:
    assert choose_sections(NAMES, expression, hold_out=hold_out) == expected


@pytest.mark.parametrize(
    ("expression", "hold_out", "fragment"),
    [
        ("A2-Z9", (), "section 'Z9' does not exist; there are A1, A2"),
        ("Q", (), "section 'Q' does not exist"),
        ("A1,,A2", (), "section '' does not exist"),
        ("C1-A1", (), "write A1-C1"),
        ("A1", ("Z9",), "section 'Z9', to be held out, does not exist"),
        ("A1", ("A1",), "no section is left"),
    ],
)
def test_choosing_unknown_sections(expression: str, hold_out: tuple[str, ...], fragment: str) -> None:
    with pytest.raises(SectionError) as caught:
        choose_sections(NAMES, expression, hold_out=hold_out)
    assert fragment in str(caught.value)


@given(st.sets(st.text("ABC123", min_size=1, max_size=3), min_size=1), st.data())
def test_a_range_includes_all_names_between(names: set[str], data: st.DataObject) -> None:
    first, last = sorted(
        (data.draw(st.sampled_from(sorted(names))), data.draw(st.sampled_from(sorted(names))))
    )
    assert choose_sections(names, f"{first}-{last}") == sorted(
        name for name in names if first <= name <= last
    )


# Genes


def test_matching_genes_puts_them_in_the_models_order(tmp_path: Path) -> None:
    section = read_only_section(legacy(tmp_path))
    dense = match_genes(section, ["MYC", "A1BG"])
    assert dense.dtype == np.float32 and dense.tolist() == [[3, 1], [0, 0]]
    with pytest.raises(SectionError, match=r"lacks 2 of the model's 3 genes \(X, Y\)"):
        match_genes(section, ["X", "MYC", "Y"])


@pytest.mark.parametrize(
    ("file", "raw"),
    [
        ("genes.txt", b"TP53\nMYC\n\n"),
        ("genes.txt", "\ufeffTP53\r\nMYC".encode()),
        ("genes.csv", b"gene,mean\nTP53,1\nMYC,2\n"),
        ("genes.csv", b'"TP53";1\n"MYC";2\n'),
        ("genes.tsv", b"TP53\tx\nMYC\ty\n"),
    ],
)
def test_gene_lists(tmp_path: Path, file: str, raw: bytes) -> None:
    (tmp_path / file).write_bytes(raw)
    assert read_gene_list(tmp_path / file) == ["TP53", "MYC"]


@pytest.mark.parametrize("dtype", ["U", "S"])
def test_gene_list_from_numpy(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "genes.npy", np.array(["TP53", "MYC"], dtype=dtype))
    assert read_gene_list(tmp_path / "genes.npy") == ["TP53", "MYC"]


def test_l9_a_gene_list_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "genes.txt.gz"
    path.write_bytes(gzip.compress(b"G1\nG2\n", 1) + gzip.compress(bytes(48 << 20), 1) * 60)
    tracemalloc.start()
    with pytest.raises(SectionError, match=r"genes\.txt\.gz: the file unpacks to more than 64 MB"):
        read_gene_list(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 << 20
    path.write_bytes(gzip.compress(b"G1\n") + gzip.compress(b"G2\n"))
    assert read_gene_list(path) == ["G1", "G2"]


def test_unusable_gene_lists_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "genes.npy", np.array(["TP53", "MYC"], dtype=object), allow_pickle=True)
    with pytest.raises(SectionError, match=r"astype\(str\)"):
        read_gene_list(tmp_path / "genes.npy")
    np.save(tmp_path / "genes.npy", np.ones((2, 2)))
    with pytest.raises(SectionError, match="one row of strings"):
        read_gene_list(tmp_path / "genes.npy")
    for text, fragment in [
        ("TP53\nMYC\nTP53\n", "TP53 is gene 1 and gene 3"),
        ("TP53\tMYC\n", "line 1 holds several names"),
        ("0\n1\n", "numbers, not gene names"),
        ("", "empty"),
    ]:
        (tmp_path / "genes.txt").write_text(text)
        with pytest.raises(SectionError, match=fragment):
            read_gene_list(tmp_path / "genes.txt")
    with pytest.raises(SectionError, match="cannot be read"):
        read_gene_list(tmp_path / "none.txt")


# Real sections and hostile ones


def test_real_sections_agree_with_pandas() -> None:
    sources = find_sections(shared("her2st"))
    genes = read_gene_list(shared("her2st", "genes.txt"))
    assert len(sources) == 36 and len(genes) == 785
    chosen = choose_sections(sources, "A2-G3")
    assert len(chosen) == 32 and chosen[0] == "A2" and chosen[-1] == "G3"
    for name in ("A1", "C4", "F3"):
        section = read_section(sources[name])
        table = pd.read_csv(sources[name].path, sep="\t", index_col=0)
        assert section.spot.tolist() == table.index.tolist()
        assert np.array_equal(match_genes(section, genes), table[genes].to_numpy(dtype=np.float32))
        coordinates = pd.read_csv(
            shared("her2st", "spots", f"{name}_selection.tsv"), sep="\t", float_precision="round_trip"
        )
        coordinates.index = coordinates.x.astype(str) + "x" + coordinates.y.astype(str)
        assert np.array_equal(section.xy_px, coordinates.loc[table.index, ["pixel_x", "pixel_y"]].to_numpy())  # type: ignore[arg-type]
    assert sources["C4"].image == SHARED / "her2st" / "images" / "C4.jpg" and sources["A1"].image is None


def test_the_published_bank_size() -> None:
    sources = find_sections(shared("her2st"))
    reference = np.load(shared("her2st", "reference", "C4.npz"))
    names = choose_sections(sources, "A2-G3", hold_out=("C4",))
    assert sum(len(read_section(sources[name])) for name in names) == int(reference["bank_size"])


@settings(quick, max_examples=80)
@given(position=st.integers(0, len(COUNTS) - 1), damage=st.binary(max_size=3))
def test_any_damage_gives_a_valid_section_or_an_error(tmp_path: Path, position: int, damage: bytes) -> None:
    legacy(tmp_path)
    raw = COUNTS.encode()
    (tmp_path / "counts" / "C4.tsv").write_bytes(raw[:position] + damage + raw[position + 1 :])
    try:
        section = read_only_section(tmp_path)
    except SectionError as error:
        assert "C4" in str(error)
        return
    assert section.counts.shape == (len(section.spot), len(section.genes))
    assert np.isfinite(section.counts.data).all() and (section.counts.data > 0).all()


def test_public_names_resolve() -> None:
    import mclst.sections

    assert dir(mclst.sections) == sorted(mclst.sections.__all__)
    assert all(hasattr(mclst.sections, name) for name in mclst.sections.__all__)
    assert set(mclst.sections.NORMALIZATIONS) == set(mclst.sections.NORMALIZATION_NAMES)
