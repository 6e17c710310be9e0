from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
from dataclasses import fields, replace
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from map_writing import genes_of, publish, spots_of, write_all

from mclst.kernels.definition.result import RetrievalResult
from mclst.runtime.errors import OutputError
from mclst.runtime.expression_map.h5ad_layout import H5adImage
from mclst.runtime.expression_map.reader import open_map
from mclst.runtime.expression_map.writer import MapWriter, downscale, estimate_spot_diameter
from mclst.sections.columns import Columns


def test_rows_in_any_order_come_back_in_the_order_of_the_spots(tmp_path):
    rng = np.random.default_rng(4)
    expression = rng.normal(size=(50, 9)).astype(np.float32)
    nearest, sure = rng.random(50).astype(np.float32), rng.random(50).astype(np.float32)
    order = rng.permutation(50)
    left_out = [7, 30]
    with MapWriter(tmp_path / "m.h5ad", genes=genes_of(9), spots=spots_of(50), overwrite=False) as writer:
        for rows in np.array_split(order[~np.isin(order, left_out)], 6):
            writer.write(rows, RetrievalResult(expression[rows], nearest[rows], sure[rows]))
        assert list(np.flatnonzero(~writer.done)) == left_out
        assert publish(writer) == tmp_path / "m.h5ad"
    expression[left_out] = nearest[left_out] = sure[left_out] = np.nan

    adata = anndata.read_h5ad(tmp_path / "m.h5ad")
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X, expression)
    np.testing.assert_array_equal(adata.obs["nearest_distance"], nearest)
    np.testing.assert_array_equal(adata.obs["effective_k"], sure)
    assert list(adata.obs_names) == list(spots_of(50).id)
    assert list(adata.var_names) == genes_of(9)
    np.testing.assert_array_equal(adata.obsm["spatial"], spots_of(50).xy_px)
    assert adata.obsm["spatial"].dtype == np.float64
    np.testing.assert_array_equal(adata.obs["array_row"], np.arange(50) // 6)
    np.testing.assert_array_equal(adata.obs["array_col"], np.arange(50) % 6)
    assert os.listdir(tmp_path) == ["m.h5ad"]


def test_the_file_equals_what_anndata_itself_would_write(tmp_path):
    expression = np.random.default_rng(5).random((12, 4), dtype=np.float32)
    table = pd.DataFrame({"name": list("abcdefghijkl"), "area": np.arange(12) / 7, "ok": [True, False] * 6})
    write_all(tmp_path / "ours.h5ad", expression, spots=spots_of(12, table))
    ours = anndata.read_h5ad(tmp_path / "ours.h5ad")
    ours.copy().write_h5ad(tmp_path / "theirs.h5ad", convert_strings_to_categoricals=False)

    def content(path):
        nodes = {}

        def keep(name, item):
            array = item[()] if isinstance(item, h5py.Dataset) else np.zeros(0)
            shown = array.tolist() if isinstance(array, np.ndarray) else array
            nodes[name] = (np.asarray(array).dtype, shown, sorted(map(str, item.attrs.items())))

        with h5py.File(path) as file:
            file.visititems(keep)
            return nodes, sorted(map(str, file.attrs.items()))

    (ours_has, ours_root), (theirs_has, theirs_root) = (
        content(tmp_path / "ours.h5ad"),
        content(tmp_path / "theirs.h5ad"),
    )
    theirs_has.pop("raw", None)
    assert ours_has == theirs_has and ours_root == theirs_root


def test_what_is_drawn_before_the_map_appears_is_what_it_reads_back_as(tmp_path):
    expression = np.random.default_rng(5).random((12, 4), dtype=np.float32)
    table = pd.DataFrame({"name": list("abcdefghijkl"), "area": np.arange(12) / 7, "ok": [True, False] * 6})
    image = np.random.default_rng(7).integers(0, 255, (1500, 2500, 3), dtype=np.uint8)
    run = {"slide": {"mpp": 0.5, "name": "a"}, "settings": {"pad": [1, 2, 3], "none": None}, "notes": ["x"]}
    seen = []
    before = {"before_publish": lambda made: seen.append(replace(made, expression=made.expression[:]))}
    path = write_all(
        tmp_path / "m.h5ad", expression, spots=spots_of(12, table), image=image, run=run, **before
    )
    (made,) = seen
    with open_map(path) as read:
        for field in fields(made):
            one, other = getattr(made, field.name), getattr(read, field.name)
            if isinstance(one, Columns):
                pd.testing.assert_frame_equal(one.frame, other.frame)
                np.testing.assert_equal(dict(one), dict(other))
            elif field.name != "path":
                np.testing.assert_equal(one, other)
    assert made.mpp == 0.5 and made.path.parent == tmp_path


@pytest.mark.slow
def test_scanpy_and_squidpy_draw_it_unmodified(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    expression = np.random.default_rng(6).random((30, 5), dtype=np.float32)
    expression[3] = np.nan
    path = write_all(tmp_path / "m.h5ad", expression, library_id="C4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scanpy
        import squidpy

        adata = scanpy.read_h5ad(path)
        scanpy.pl.spatial(adata, color="GENE1", show=False)
        plt.savefig(tmp_path / "scanpy.png")
        axes = squidpy.pl.spatial_scatter(adata, color=["GENE2", "effective_k"], return_ax=True)
        plt.savefig(tmp_path / "squidpy.png")
        plt.close("all")
    assert len(axes) == 2
    assert (tmp_path / "scanpy.png").stat().st_size > 5000
    assert (tmp_path / "squidpy.png").stat().st_size > 5000


def test_the_slide_stands_where_scanpy_looks_for_it(tmp_path):
    image = np.random.default_rng(7).integers(0, 255, (1500, 3000, 3), dtype=np.uint8)
    path = write_all(
        tmp_path / "m.h5ad",
        np.ones((8, 2), np.float32),
        image=image,
        image_scale=0.25,
        library_id="a/b",
        metadata={"source_image_path": "/data/a.tif"},
        spot_diameter_px=None,
    )
    ((library, slide),) = anndata.read_h5ad(path).uns["spatial"].items()
    assert library == "a_b"
    assert slide["images"]["hires"].shape == (1000, 2000, 3) and slide["images"]["hires"].dtype == np.uint8
    assert slide["images"]["lowres"].shape == (300, 600, 3)
    assert slide["scalefactors"]["tissue_hires_scalef"] == pytest.approx(0.25 * 2 / 3)
    assert slide["scalefactors"]["tissue_lowres_scalef"] == pytest.approx(0.25 / 5)
    assert slide["scalefactors"]["spot_diameter_fullres"] == pytest.approx(100.5 / 2)
    assert slide["metadata"]["source_image_path"] == "/data/a.tif"
    assert slide["metadata"]["software_version"].startswith("mclst ")


def test_shrinking_averages_and_keeps_small_images(tmp_path):
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, ::2] = 200
    small, scale = downscale(image, 0.5, 20)
    assert small.shape == (10, 20, 3) and (small == 100).all() and scale == 0.125
    same, scale = downscale(image, 0.5, 80)
    assert same is image and scale == 0.5


def test_an_existing_map_is_kept_unless_told_otherwise(tmp_path):
    path = tmp_path / "m.h5ad"
    path.write_bytes(b"older")
    with pytest.raises(OutputError, match="exists"):
        MapWriter(path, genes=["A"], spots=spots_of(2), overwrite=False)
    with (
        pytest.raises(ZeroDivisionError),
        MapWriter(path, genes=["A"], spots=spots_of(2), overwrite=True) as writer,
    ):
        writer.write(
            np.array([0]), RetrievalResult(np.ones((1, 1), np.float32), *np.ones((2, 1), np.float32))
        )
        raise ZeroDivisionError
    assert path.read_bytes() == b"older" and os.listdir(tmp_path) == ["m.h5ad"]
    write_all(path, np.ones((2, 1), np.float32), overwrite=True)
    assert anndata.read_h5ad(path).shape == (2, 1)


def test_a_map_that_appears_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "m.h5ad"
    with MapWriter(path, genes=["A"], spots=spots_of(2), overwrite=False) as writer:
        path.write_bytes(b"someone else's")
        with pytest.raises(OutputError, match="appeared meanwhile"):
            publish(writer)
    assert path.read_bytes() == b"someone else's" and os.listdir(tmp_path) == ["m.h5ad"]


def test_places_that_cannot_be_written_are_refused_at_once(tmp_path):
    with pytest.raises(OutputError, match="not a folder"):
        MapWriter(tmp_path / "absent" / "m.h5ad", genes=["A"], spots=spots_of(2), overwrite=False)
    (tmp_path / "d.h5ad").mkdir()
    with pytest.raises(OutputError, match="not a plain file"):
        MapWriter(tmp_path / "d.h5ad", genes=["A"], spots=spots_of(2), overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        MapWriter(tmp_path / ("m" * 250 + ".h5ad"), genes=["A"], spots=spots_of(2), overwrite=False)
    assert os.listdir(tmp_path) == ["d.h5ad"]


def test_space_that_is_not_there_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10_000_000})())
    with pytest.raises(OutputError, match=r"needs 17 MB and .* has 10 MB free"):
        MapWriter(tmp_path / "m.h5ad", genes=["A"], spots=spots_of(2), overwrite=False)
    assert os.listdir(tmp_path) == []


def run_python(code, *arguments):
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(code),
        str(Path(__file__).parents[2] / "support"),
        *map(str, arguments),
    ]
    return subprocess.run(command, check=False, capture_output=True, text=True)


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
from map_writing import IMAGE, genes_of, publish, spots_of
from mclst.kernels.definition.result import RetrievalResult
from mclst.runtime.errors import OutputError
from mclst.runtime.expression_map.reader import open_map
from mclst.runtime.expression_map.writer import MapWriter

{before}
try:
    with MapWriter(Path({path!r}), genes=genes_of(1000), spots=spots_of(500), overwrite=True) as writer:
        for start in range(0, 500, 100):
            rows = np.arange(start, start + 100)
            {during}
            writer.write(rows, RetrievalResult(np.ones((100, 1000), np.float32), np.ones(100), np.ones(100)))
        {after}
        publish(writer)
except OutputError as error:
    print(error)
    sys.exit(5)
"""
FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, (1_200_000, resource.RLIM_INFINITY))"


@pytest.mark.parametrize("when", ["before", "during", "after"])
@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_leaves_the_old_map(tmp_path, when):
    path = tmp_path / "out" / "m.h5ad"
    path.parent.mkdir()
    write_all(path, np.full((5, 3), 7, np.float32))
    old = path.read_bytes()
    blanks = {"before": "", "during": "pass", "after": "pass"}
    code = LIMITED.format(path=str(path), **{**blanks, when: FULL})
    done = run_python(code)
    assert done.returncode == 5, done.stderr
    assert done.stdout.count("\n") == 1 and "File too large" in done.stdout and str(path) in done.stdout
    assert path.read_bytes() == old and os.listdir(path.parent) == ["m.h5ad"]


def test_leftovers_of_dead_runs_are_swept_and_nothing_else(tmp_path):
    dead = 10**9  # above any process's number
    stale = [f".m.h5ad.{dead}.part", f".m.h5ad.{dead}-0a1b2c3d.part"]
    others = [f".n.h5ad.{dead}.part", ".m.h5ad.part", f".m.h5ad.{os.getppid()}-00000000.part"]
    for name in stale + others:
        (tmp_path / name).touch()
    write_all(tmp_path / "m.h5ad", np.ones((2, 1), np.float32))
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "m.h5ad"])


def test_two_runs_cannot_write_one_map(tmp_path):
    path = tmp_path / "m.h5ad"
    with (
        MapWriter(path, genes=["A"], spots=spots_of(2), overwrite=True),
        pytest.raises(OutputError, match="being written by another run"),
    ):
        MapWriter(path, genes=["A"], spots=spots_of(2), overwrite=True)
    write_all(path, np.ones((2, 1), np.float32))


def test_bytes_that_changed_on_the_disk_are_noticed(tmp_path):
    path = tmp_path / "m.h5ad"
    with MapWriter(path, genes=genes_of(3), spots=spots_of(4), overwrite=False) as writer:
        expression = np.arange(12, dtype="<f4").reshape(4, 3)
        writer.write(np.arange(4), RetrievalResult(expression, *np.ones((2, 4), np.float32)))
        (part,) = tmp_path.iterdir()
        row = part.read_bytes().index(expression[2].tobytes())
        with part.open("r+b") as file:
            file.seek(row)
            file.write(b"\x01")
        with pytest.raises(OutputError, match="does not read back"):
            publish(writer)
    assert os.listdir(tmp_path) == []


def test_a_row_written_again_is_replaced_and_wrong_rows_are_refused(tmp_path):
    one = np.ones(1, np.float32)
    with MapWriter(tmp_path / "m.h5ad", genes=["A", "B"], spots=spots_of(3), overwrite=False) as writer:
        writer.write(np.array([1]), RetrievalResult(np.full((1, 2), 5, np.float32), one, one))
        writer.write(np.array([1]), RetrievalResult(np.full((1, 2), 6, np.float32), one * 2, one))
        writer.write(np.zeros(0, np.int64), RetrievalResult(np.zeros((0, 2), np.float32), one[:0], one[:0]))
        for rows, expression in (
            ([3], [[1, 1]]),
            ([-1], [[1, 1]]),
            ([0, 0], [[1, 1], [2, 2]]),
            ([0], [[1, 1, 1]]),
        ):
            with pytest.raises(ValueError):
                writer.write(np.array(rows), RetrievalResult(np.array(expression, np.float32), one, one))
        publish(writer)
    adata = anndata.read_h5ad(tmp_path / "m.h5ad")
    np.testing.assert_array_equal(adata.X, [[np.nan] * 2, [6, 6], [np.nan] * 2])
    assert adata.obs["nearest_distance"].tolist()[1] == 2.0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_map(tmp_path):
    code = """
        import resource, sys
        from pathlib import Path
        import numpy as np
        sys.path.insert(0, sys.argv[1])
        from map_writing import genes_of, publish, spots_of
        from mclst.kernels.definition.result import RetrievalResult
        from mclst.runtime.expression_map.writer import MapWriter
        n, genes = 20_000, 3_000
        batch = np.ones((500, genes), np.float32)
        path = Path(sys.argv[2]) / "m.h5ad"
        with MapWriter(path, genes=genes_of(genes), spots=spots_of(n), overwrite=False) as writer:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for start in range(0, n, 500):
                writer.write(np.arange(start, start + 500), RetrievalResult(batch, batch[:, 0], batch[:, 0]))
            publish(writer)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m.h5ad").stat().st_size > 240_000_000
    assert int(done.stdout) < 100_000  # kB


def test_usual_spot_diameter():
    assert estimate_spot_diameter(spots_of(20).xy_px) == pytest.approx(50.25)
    assert estimate_spot_diameter(np.zeros((1, 2))) == estimate_spot_diameter(np.zeros((3, 2))) == 100.0


def test_hdf5_reaching_into_the_place_of_x_is_noticed():
    image = H5adImage((4, 3))
    image._file["X"][0] = 1.0
    with pytest.raises(RuntimeError, match="bytes of a matrix"):
        image.close()
