"""`mclst-report`: its page, other maps, and errors of bad input."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
from anndata.io import write_elem
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from page_reader import PageReader
from PIL import Image
from small_model import GENES, Small
from synthetic_maps import DIAMETER, SCALE, SyntheticMap, synthetic_map

from mclst.runtime.cli.infer import main as infer
from mclst.runtime.cli.report import main
from mclst.runtime.decoding.blocks import can_keep_blocks
from mclst.runtime.expression_map.measured import choose_section, pair_with_truth, read_map
from mclst.runtime.expression_map.morans_i import morans_i
from mclst.runtime.expression_map.reader import open_map
from mclst.runtime.report.page import elements
from mclst.runtime.report.page.layers import COARSE_STEPS, FINE_STEPS, quantize, read_values
from mclst.runtime.report.page.openseadragon import VIEWER_PATH

with_viewer = pytest.mark.skipif(
    not VIEWER_PATH.is_file(), reason="OpenSeadragon was not fetched when mclst was installed"
)


def report(*words: str) -> Result:
    return CliRunner().invoke(main, ["made.h5ad", *words])


@settings(max_examples=80, deadline=None)
@given(
    arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.floats(-1e6, 1e6, width=32) | st.just(np.float32(math.nan)),
    ),
    st.sampled_from([FINE_STEPS, COARSE_STEPS, 30]),
)
def test_a_value_in_a_page_is_off_by_half_a_step_at_most(values: np.ndarray, steps: int) -> None:
    (codes,), (channel,) = quantize(values[:, None], steps)
    known = np.isfinite(values)
    assert (codes > 0).tolist() == known.tolist() and codes.max() <= steps + 1
    if known.any():
        decoded = channel["low"] + (codes[known].astype(np.float64) - 1) * channel["step"]
        error = np.abs(decoded - values[known]).max()
        assert error <= channel["step"] / 2 * (1 + 1e-6) + 1e-9 * np.abs(decoded).max()
        assert channel["step"] * steps == pytest.approx(float(np.ptp(values[known].astype(float))))
        assert channel["limits"] == pytest.approx(tuple(np.percentile(values[known].astype(float), [1, 99])))


def test_values_are_read_in_blocks(made: SyntheticMap, monkeypatch: pytest.MonkeyPatch) -> None:
    spots, genes = np.array([0, 3, 4, 40, 79, 80]), [7, 0, 11, 3]
    for part in (1, 8 * 12 * 5, 1 << 20):
        monkeypatch.setattr("mclst.runtime.report.page.layers.BLOCK_BYTES", part)
        with open_map(made.path) as expression_map:
            np.testing.assert_array_equal(
                read_values(expression_map.expression, spots, genes), made.expression[spots][:, genes]
            )


@with_viewer
def test_the_default_is_one_self_contained_page(made: SyntheticMap) -> None:
    done = report()
    assert done.exit_code == 0 and done.stdout == "made.html\n", done.output
    assert sorted(os.listdir()) == ["made.h5ad", "made.html"]
    page = Path("made.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page.split("</head>")[1])
    assert "<link" not in page.replace('<link rel="icon" href="data:,">', "") and "@import" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy and "default-src 'none'" in policy[1] and "http" not in policy[1]
    metadata = PageReader(Path("made.html")).metadata
    moran = morans_i(made.expression, made.xy_px)
    assert metadata["genes"] == [made.genes[g] for g in np.argsort(-moran)]
    assert metadata["morans_i"] == pytest.approx(sorted(moran, reverse=True), abs=1e-4)
    assert metadata["mpp"] == 0.5 and metadata["spot_diameter_px"] == DIAMETER and not metadata["square"]


@with_viewer
@pytest.mark.slow
def test_the_page_of_a_large_map_stays_small(tmp_path: Path) -> None:
    made = synthetic_map(tmp_path / "made.h5ad", side=100, genes=120)
    assert CliRunner().invoke(main, [str(made.path), "-q"]).exit_code == 0
    page = PageReader(tmp_path / "made.html")
    assert page.layer("predicted")["steps"] == COARSE_STEPS and len(page.metadata["genes"]) == 120
    assert len(page.text) < 2 * made.expression.size


@pytest.mark.slow
def test_a_scanpy_map_without_mclst_fields_works(made: SyntheticMap) -> None:
    """A map without anything of mclst, its picture in floats and its counts sparse."""
    import scipy.sparse as sp

    data = anndata.read_h5ad(made.path)
    data.X = sp.csr_matrix(np.nan_to_num(made.expression))
    (slide,) = data.uns["spatial"].values()
    slide["images"]["hires"] = slide["images"]["hires"].astype(np.float32) / 255
    data.uns = {"spatial": data.uns["spatial"]}
    data.obs = data.obs[[]]
    data.write_h5ad(made.path)
    done = report("--no-html", "--plot", "GENE1", "--plot-format", "svg", "--geojson")
    assert done.exit_code == 0, done.output
    assert "µm<" not in Path("made.plot.svg").read_text()
    with open_map(made.path) as expression_map:
        assert (
            expression_map.image.dtype == np.uint8
            and expression_map.image.max() == 240
            and expression_map.mpp is None
        )


@with_viewer
def test_measured_values_equal_those_of_the_evaluation(
    small: Small, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(small.slide), "--spots", str(small.spots), "--bundle", str(small_bundle), "-q", "--geojson"]
    done = CliRunner().invoke(infer, words)
    assert done.exit_code == 0, done.output
    assert {"B1.h5ad", "B1.html", "B1.geojson", "B1.genes.png", "B1.run.json"} == set(os.listdir())
    seen: list[np.ndarray] = []
    monkeypatch.setattr(
        "mclst.runtime.report.page.slide_page.write_slide_page",
        lambda expression_map, path, *, measured, **options: seen.append(measured) or (),
    )
    done = CliRunner().invoke(main, ["B1.h5ad", "--truth", str(small.folder), "--overwrite"])
    assert done.exit_code == 0, done.output
    predicted = read_map(Path("B1.h5ad"))
    pair = pair_with_truth(predicted, choose_section(predicted, small.folder, "B1"))
    np.testing.assert_allclose(seen[0], pair.truth, rtol=1e-6)
    assert seen[0].shape == (24, GENES)


@with_viewer
@pytest.mark.slow
def test_infer_writes_what_report_writes(
    small: Small, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--csv", "--plot", "GENE1", "--geojson"]
    words = [str(small.slide), "--spots", str(small.spots), "--bundle", str(small_bundle)]
    words += ["--json", "-", *options]
    done = CliRunner().invoke(infer, words)
    assert done.exit_code == 0, done.output
    files = json.loads(done.stdout)["files"]
    suffixes = {"html": ".html", "geojson": ".geojson", "csv": ".csv", "plot": ".plot.png"}
    assert files == {kind: f"B1{suffix}" for kind, suffix in suffixes.items()}
    done = CliRunner().invoke(main, ["B1.h5ad", "--out", "again", *options, "-q"])
    assert done.exit_code == 0, done.output
    for place in files.values():
        again = Path(place.replace("B1", "again"))
        assert again.read_bytes() == Path(place).read_bytes(), place
    taken = CliRunner().invoke(infer, [*words, "--overwrite", "--out", "other.h5ad", "--plot", "NOPE"])
    assert taken.exit_code == 4 and "--plot names NOPE" in taken.stderr
    assert not Path("other.h5ad").exists()


@with_viewer
@pytest.mark.slow
def test_a_slide_gives_the_page_a_finer_tissue_image(
    small: Small, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    big = Image.open(small.slide).resize((2400, 2000), Image.Resampling.NEAREST)
    big.save("big.png")
    Path("spots.csv").write_text(
        "id,x,y\n" + "".join(f"s{i},{200 * i + 100},{150 * i + 100}\n" for i in range(11))
    )

    def tissue(page: str) -> tuple[Image.Image, float]:
        text = Path(page).read_text()
        content = base64.b64decode(re.search('src="data:image/jpeg;base64,([^"]*)"', text)[1])  # type: ignore[index]
        metadata = PageReader(Path(page)).metadata["image"]
        image = Image.open(BytesIO(content))
        assert image.size == (metadata["width"], metadata["height"])
        return image, metadata["scale"]

    words = ["big.png", "--spots", "spots.csv", "--bundle", str(small_bundle), "-q"]
    assert CliRunner().invoke(infer, words).exit_code == 0
    image, scale = tissue("big.html")
    assert image.size == (2400, 2000) and scale == 1.0
    assert np.abs(np.asarray(image).astype(int) - np.asarray(big.convert("RGB")).astype(int)).mean() < 4
    with open_map(Path("big.h5ad")) as expression_map:
        assert max(expression_map.image.shape) == 2000
    assert CliRunner().invoke(infer, [*words, "--html-px", "600", "--overwrite"]).exit_code == 0
    assert tissue("big.html")[0].size == (600, 500)
    words = ["big.h5ad", "--overwrite", "-q"]
    assert CliRunner().invoke(main, words).exit_code == 0
    assert tissue("big.html")[0].size == (2000, 1667)
    assert CliRunner().invoke(main, [*words, "--slide", "big.png", "--html-px", "2200"]).exit_code == 0
    image, scale = tissue("big.html")
    assert image.size == (2200, 1833) and scale == pytest.approx(2200 / 2400)
    before = Path("big.html").read_bytes()
    done = CliRunner().invoke(main, [*words, "--slide", str(small.slide)])
    assert done.exit_code == 4 and "240 x 200 px" in done.stderr
    assert Path("big.html").read_bytes() == before


@with_viewer
def test_a_jpeg_slide_gives_its_page_from_one_pass_or_a_sentence(
    made: SyntheticMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_map(made.path) as expression_map:
        height, width = (round(side / SCALE) for side in expression_map.image.shape[:2])
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x // 8 % 256, y // 8 % 256, np.full_like(x, 90)], 2).astype(np.uint8)
    Image.fromarray(pixels).save("slide.jpg", quality=95)
    words = ["made.h5ad", "--slide", "slide.jpg", "--html-px", "400", "-q"]
    with monkeypatch.context() as patch:
        if can_keep_blocks():
            patch.setattr("mclst.runtime.decoding.jpeg.decode_jpeg", None)
        done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    text = Path("made.html").read_text(encoding="utf-8")
    content = base64.b64decode(re.search('src="data:image/jpeg;base64,([^"]*)"', text)[1])  # type: ignore[index]
    image = Image.open(BytesIO(content))
    expected = Image.fromarray(pixels).resize(image.size, Image.Resampling.BOX)
    assert max(image.size) == 400
    assert np.abs(np.asarray(image).astype(int) - np.asarray(expected).astype(int)).mean() < 4

    whole = Path("slide.jpg").read_bytes()
    Path("slide.jpg").write_bytes(whole[: len(whole) // 2])
    done = CliRunner().invoke(main, [*words, "--overwrite"])
    assert done.exit_code == 4 and "slide.jpg is a damaged or incomplete JPEG" in done.stderr
    assert Path("made.html").read_text(encoding="utf-8") == text


def test_morans_i_of_a_map_is_that_of_squidpy(made: SyntheticMap) -> None:
    """The map as squidpy opens it: its own neighbors, its own Moran's I, the page's order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import squidpy

        data = anndata.read_h5ad(made.path)
        data = data[~np.isnan(data.X).any(axis=1)].copy()
        squidpy.gr.spatial_neighbors(data, coord_type="generic", n_neighs=6)
        squidpy.gr.spatial_autocorr(data, mode="moran", n_jobs=1, show_progress_bar=False)
    expected = data.uns["moranI"]["I"]
    with open_map(made.path) as expression_map:
        order = [expression_map.genes[g] for g in expression_map.order]
        np.testing.assert_allclose(
            expression_map.morans_i[expression_map.order], expected.reindex(order).to_numpy(), rtol=1e-5
        )
    assert order == list(expected.index)


BAD = [
    (("--section", "A"), 2, "--section belongs to --truth"),
    (("--normalization", "gene-wise"), 2, "--normalization belongs to --truth"),
    (("--bin", "8"), 2, "--bin belongs to --truth"),
    (("--html-px", "400"), 2, "--html-px belongs to --slide"),
    (("--csv-escape",), 2, "--csv-escape belongs to --csv"),
    (("--plot-format", "pdf"), 2, "--plot-format belongs to --plot"),
    (("--geojson-genes", "GENE1"), 2, "--geojson-genes belongs to --geojson"),
    (("--no-html", "--csv", "--html-mb", "5"), 2, "--html-mb belongs to the page"),
    (("--no-html",), 2, "nothing to write"),
    (("--no-html", "--truth", "x"), 2, "leaves out"),
    (("--no-html", "--slide", "x"), 2, "leaves out"),
    (("--no-html", "--plot", " , "), 2, "name one gene"),
    (("--no-html", "--plot", "gene1"), 4, "it has GENE1"),
    (("--no-html", "--geojson", "--geojson-genes", "NOPE"), 4, "--geojson-genes names NOPE"),
    (("--no-html", "--csv", "--out", "absent/x"), 5, "absent"),
    (("--no-html", "--csv", "--json", "made.h5ad"), 5, "made.h5ad"),
    (("--no-html", "--csv", "--out", "."), 5, "names no file to write"),
    (("--no-html", "--csv", "--out", ".."), 5, "names no file to write"),
]


@pytest.mark.parametrize(("words", "code", "message"), BAD)
def test_bad_options_are_one_sentence(
    made: SyntheticMap, words: tuple[str, ...], code: int, message: str
) -> None:
    before = made.path.read_bytes()
    done = report(*words)
    assert done.exit_code == code and message in done.stderr and "Traceback" not in done.output, done.output
    assert os.listdir() == ["made.h5ad"] and made.path.read_bytes() == before


def test_files_that_are_no_maps_are_refused(made: SyntheticMap) -> None:
    data = anndata.read_h5ad(made.path)
    wrongs = {
        "text.h5ad": None,
        "absent.h5ad": None,
        "noimage.h5ad": data.copy(),
        "twice.h5ad": data.copy(),
        "nowhere.h5ad": data.copy(),
        "short.h5ad": data.copy(),
    }
    Path("text.h5ad").write_text("not HDF5")
    del wrongs["noimage.h5ad"].uns["spatial"]
    wrongs["twice.h5ad"].var_names = ["A"] * data.n_vars
    wrongs["nowhere.h5ad"].obsm["spatial"][3] = np.nan
    del wrongs["short.h5ad"].obsm["spatial"]
    for name, wrong in wrongs.items():
        if wrong is not None:
            wrong.write_h5ad(name)
        done = CliRunner().invoke(main, [name, "--no-html", "--csv"])
        assert done.exit_code == 4 and name in done.stderr and "Traceback" not in done.output, done.output
        assert done.stderr.count("\n") == 1
    for name in (".", "", "absent.h5ad"):
        done = CliRunner().invoke(main, [name, "--csv"])
        assert (done.exit_code, done.stderr.count("\n")) == (4, 1), done.output
        assert "is not a file; give a map" in done.stderr
    assert not list(Path().glob("*.csv"))


@pytest.mark.parametrize(
    ("member", "values", "message"),
    [
        (
            "uns/spatial/made/scalefactors/tissue_hires_scalef",
            (0.0, math.nan, -0.1),
            "tissue_hires_scalef is",
        ),
        ("uns/spatial/made/scalefactors/spot_diameter_fullres", (math.inf, -1.0), "spot_diameter_fullres is"),
        ("uns/mclst/slide/mpp", (0.0, math.nan), "µm per pixel is"),
        ("uns/mclst/trust", ("good",), "['trust'] is 'good'"),
        ("uns/mclst/trust", ({"outside_share": "most"},), "outside_share'] is 'most'"),
        ("uns/spatial/made/images/hires", (np.full((9, 9, 3), 70_000),), "values up to 70000"),
        ("obsm/spatial", (np.ones((81, 3)),), "obsm['spatial'] is (81, 3)"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    made: SyntheticMap, member: str, values: tuple[Any, ...], message: str
) -> None:
    for value in values:
        with h5py.File(made.path, "r+") as file:
            if member in file:
                del file[member]
            write_elem(file, member, value)
        done = report()
        assert done.exit_code == 4 and message in done.stderr and done.stderr.count("\n") == 1, done.output
    assert os.listdir() == ["made.h5ad"]


@pytest.mark.parametrize("kind", ["float", "0 to 255", "uint16", "int64"])
def test_a_tissue_image_of_any_number_keeps_its_colors(made: SyntheticMap, kind: str) -> None:
    with open_map(made.path) as expression_map:
        image = expression_map.image
    stored = {
        "float": (image / 255).astype(np.float32),
        "0 to 255": image.astype(np.float32),
        "uint16": image.astype(np.uint16) * 257,
        "int64": image.astype(np.int64),
    }
    with h5py.File(made.path, "r+") as file:
        del file["uns/spatial/made/images/hires"]
        write_elem(file, "uns/spatial/made/images/hires", stored[kind])
    with open_map(made.path) as expression_map:
        np.testing.assert_array_equal(expression_map.image, image)


def test_without_the_viewer_report_fails_and_infer_skips_the_page(
    made: SyntheticMap, small: Small, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mclst.runtime.report.page.openseadragon.VIEWER_PATH", Path("nowhere.js"))
    done = report()
    assert done.exit_code == 6 and "python -m mclst.runtime.report.page.openseadragon" in done.stderr
    words = [str(small.slide), "--spots", str(small.spots), "--bundle", str(small_bundle)]
    done = CliRunner().invoke(infer, words)
    assert done.exit_code == 0 and "Note: the viewer OpenSeadragon is not in this installation" in done.stderr
    assert Path("B1.h5ad").exists() and not Path("B1.html").exists()
    assert CliRunner().invoke(infer, [*words, "--html", "--out", "b.h5ad"]).exit_code == 6
    assert not Path("b.h5ad").exists()


def test_a_missing_package_is_named_with_its_extra(
    made: SyntheticMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mclst.runtime.report.files.find_spec", lambda name: None)
    for option, extra in (("--spatialdata", "mclst[spatialdata]"), ("--parquet", "mclst[parquet]")):
        done = report("--no-html", option)
        assert done.exit_code == 6 and extra in done.stderr and os.listdir() == ["made.h5ad"]


def test_pages_escape_their_content() -> None:
    page = elements.page(
        "a<b", "c&d", elements.table([{"<n>": 1.5, "m": None}, {"<n>": float("nan"), "m": "x<y"}], label="t")
    )
    text = page.decode()
    assert "<h1>a&lt;b</h1>" in text and "c&amp;d" in text and "x&lt;y" in text
    assert "<td class=number>1.5</td>" in text and "<td class=number>–</td>" in text
    facts = elements.facts({"a_b": 12345, "deep": {"list": np.array([1.0, 2.5]), "<k>": True}, "none": {}})
    assert "<dt>a b</dt><dd>12,345</dd>" in facts and "<h3>deep</h3>" in facts
    assert "1, 2.5" in facts and "&lt;k&gt;" in facts and "yes" in facts
    assert "<\\/script" in elements.page("t", "", "", scripts=['"</script"']).decode()


def test_scripts_parse() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here; the browser's tests run the scripts too")
    for script in sorted((elements.BROWSER).glob("*.js")):
        subprocess.run([node, "--check", str(script)], check=True, capture_output=True)


@pytest.mark.slow
def test_the_command_has_an_entry_point() -> None:
    code = (
        "import sys; sys.argv = ['mclst-report', '-h']; "
        "from mclst.runtime.entry_points import report; report()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--geojson" in done.stdout and "--truth" in done.stdout
