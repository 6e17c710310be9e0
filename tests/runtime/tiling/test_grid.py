"""Dense maps: where tissue is, which places a grid keeps, and the OME-TIFF that comes out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mclst.runtime.cli.infer import main
from mclst.runtime.errors import SlideError, SpotsError
from mclst.runtime.report.export.ome_tiff import downsample, write_ome_tiff
from mclst.runtime.slide.base import Level, Slide
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.grid import make_grid
from mclst.runtime.tiling.region import restrict_grid
from mclst.runtime.tiling.tissue import TissueMask, find_tissue, otsu, read_mask

PINK, GLASS = (205, 130, 180), (243, 242, 244)


def disc(height: int, width: int, radius: float) -> NDArray[np.bool_]:
    y, x = np.mgrid[:height, :width]
    inside: NDArray[np.bool_] = np.hypot(y - height / 2, x - width / 2) < radius
    return inside


def write_slide(path: Path, mask: NDArray[np.bool_], seed: int = 0) -> None:
    """Pink tissue where `mask` is, glass elsewhere, with grain; 0.5 µm/px."""
    rng = np.random.default_rng(seed)
    pixels = np.where(mask[..., None], np.array(PINK), np.array(GLASS)) + rng.normal(0, 4, (*mask.shape, 3))
    tifffile.imwrite(
        path,
        np.clip(pixels, 0, 255).astype(np.uint8),
        tile=(256, 256),
        compression="zlib",
        photometric="rgb",
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
        metadata=None,
    )


class Blank(Slide):
    """A slide of a size, never read."""

    def __init__(self, width: int, height: int, mpp: float | tuple[float, float] | None = None) -> None:
        level = Level(width, height, 1.0, (1, 1))
        super().__init__(Path("blank"), reader="none", vendor="none", levels=(level,), mpp=mpp)

    def _read_inside(self, pixels: NDArray[np.uint8], x: int, y: int, level: int) -> None:
        raise AssertionError("a grid reads nothing")

    def close(self) -> None:
        """Nothing is open."""


def test_tissue_is_found_within_20_um_of_its_border(tmp_path: Path) -> None:
    truth = disc(1200, 1600, 450)
    write_slide(tmp_path / "s.tif", truth)
    with open_slide(tmp_path / "s.tif") as slide:
        tissue = find_tissue(slide, 0.5)
    assert tissue.mask.shape == (75, 100)  # 8 µm per pixel
    large = np.kron(tissue.mask, np.ones((16, 16), bool))
    near = ndimage.binary_dilation(truth, iterations=40) & ~ndimage.binary_erosion(truth, iterations=40)
    assert np.array_equal(large & ~near, truth & ~near)


def test_a_slide_without_tissue_has_none_and_one_full_of_it_is_not_split(tmp_path: Path) -> None:
    write_slide(tmp_path / "none.tif", np.zeros((600, 800), bool))
    write_slide(tmp_path / "all.tif", np.ones((600, 800), bool))
    with open_slide(tmp_path / "none.tif") as none, open_slide(tmp_path / "all.tif") as whole:
        assert find_tissue(none, 0.5).mask.mean() == 0
        assert find_tissue(whole, 0.5).mask.mean() == 1
        with pytest.raises(SlideError, match=r"no tissue is found .* give --tissue-mask"):
            make_grid(none, 20, 0.5, find_tissue(none, 0.5))


def test_specks_are_dropped_and_small_holes_filled(tmp_path: Path) -> None:
    mask = disc(1600, 1600, 500)
    mask[790:830, 790:830] = False  # 20 x 20 µm
    mask[40:80, 40:80] = True
    write_slide(tmp_path / "s.tif", mask)
    with open_slide(tmp_path / "s.tif") as slide:
        tissue = find_tissue(slide, 0.5).mask
    assert tissue[50, 50] and not tissue[:10, :10].any()


@pytest.mark.slow
def test_tissue_of_real_sections(slides: Path, her2st: Path) -> None:
    with open_slide(slides / "CMU-1-Small-Region.svs") as slide:
        assert 0.3 < find_tissue(slide, 0.499).mask.mean() < 0.45
    with open_slide(her2st / "images" / "C4.jpg") as slide:
        tissue = find_tissue(slide, 0.69).mask
        scale = tissue.shape[1] / slide.width_px
    spots = np.loadtxt(her2st / "spots" / "C4_selection.tsv", skiprows=1)
    column, row = (spots[spots[:, 6] == 1][:, 4:6] * scale).astype(int).T
    assert tissue[row, column].mean() > 0.95, "the published selection of spots lies on tissue"
    assert tissue.mean() < 0.35


@pytest.mark.parametrize("seed", range(3))
def test_otsu_is_the_best_of_all_thresholds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (
        np.concatenate([rng.normal(40, 9, 500), rng.normal(150, 25, 300)]).clip(0, 255).astype(np.float32)
    )

    def between(threshold: int) -> float:
        low, high = values[values < threshold], values[values >= threshold]
        return len(low) * len(high) * float(low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0.0

    best = max(range(1, 256), key=between)
    assert between(int(otsu(values))) == pytest.approx(between(best), rel=1e-3)


@quick
@given(
    width=st.integers(1, 400), height=st.integers(1, 400), stride=st.floats(1, 90),
    mask_width=st.integers(1, 60), seed=st.integers(0, 9),
)  # fmt: skip
def test_a_grid_keeps_what_plain_numpy_keeps(
    width: int, height: int, stride: float, mask_width: int, seed: int
) -> None:
    mask_height = max(1, round(mask_width * height / width))
    mask = np.random.default_rng(seed).random((mask_height, mask_width)) < 0.5
    slide = Blank(width, height)
    expected = set()
    columns, rows = (sum(1 for i in range(500) if (i + 0.5) * stride < side) for side in (width, height))
    for row in range(rows):
        for column in range(columns):
            x = [round(side * stride * mask_width / width) for side in (column, column + 1)]
            y = [round(side * stride * mask_height / height) for side in (row, row + 1)]
            part = mask[min(y[0], mask_height) : y[1], min(x[0], mask_width) : x[1]]
            if part.size == 0:
                at_x = min(int((column + 0.5) * stride * mask_width / width), mask_width - 1)
                at_y = min(int((row + 0.5) * stride * mask_height / height), mask_height - 1)
                lines = slice(y[0], y[1]) if min(y[1], mask_height) > y[0] else slice(at_y, at_y + 1)
                across = slice(x[0], x[1]) if min(x[1], mask_width) > x[0] else slice(at_x, at_x + 1)
                part = mask[lines, across]
            if part.sum() >= 0.5 * part.size:
                expected.add(f"{column}x{row}")
    if not expected:
        with pytest.raises((SpotsError, SlideError)):
            make_grid(slide, stride, 1.0, TissueMask(mask, "made up"))
        return
    grid = make_grid(slide, stride, 1.0, TissueMask(mask, "made up"))
    assert set(grid.spots.id) == expected
    assert grid.skipped == columns * rows - len(expected) and (grid.columns, grid.rows) == (columns, rows)
    first = [float(part) for part in str(grid.spots.id[0]).split("x")]
    assert np.allclose(grid.spots.xy_px[0], [(side + 0.5) * stride for side in first])
    assert (grid.spots.xy_px < (width, height)).all() and (grid.spots.xy_px >= 0).all()


def test_absurd_grids_are_refused_before_any_memory_is_taken() -> None:
    whole = TissueMask(np.ones((2, 2), bool), "all")
    with pytest.raises(SpotsError, match="more than 50,000,000; give a larger --grid"):
        make_grid(Blank(400_000, 300_000), 1.0, 0.25, whole)
    with pytest.raises(SpotsError, match="has no position; give a smaller --grid"):
        make_grid(Blank(100, 100), 1000.0, 0.25, whole)


def test_masks_at_any_scale_and_what_is_no_mask(tmp_path: Path) -> None:
    mask = disc(120, 160, 40)
    slide = Blank(1600, 1200)
    Image.fromarray(mask.astype(np.uint8) * 3).save(tmp_path / "labels.png")
    Image.fromarray(mask).save(tmp_path / "bits.png")
    Image.fromarray(mask.astype(np.uint8) * 255).resize((1600, 1200), Image.Resampling.NEAREST).save(
        tmp_path / "full.jpg", quality=70
    )
    tifffile.imwrite(tmp_path / "mask.tif", mask.astype(np.uint8))
    for name in ("labels.png", "bits.png", "mask.tif"):
        assert np.array_equal(read_mask(tmp_path / name, slide).mask, mask), name
    jpeg = read_mask(tmp_path / "full.jpg", slide).mask
    assert (jpeg != np.kron(mask, np.ones((10, 10), bool))).mean() < 0.01
    with pytest.raises(SlideError, match="another shape"):
        read_mask(tmp_path / "labels.png", Blank(1200, 1600))
    Image.fromarray(np.zeros((120, 160), np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(SlideError, match="black or transparent throughout"):
        read_mask(tmp_path / "black.png", slide)
    with pytest.raises(SlideError, match="does not exist"):
        read_mask(tmp_path / "absent.png", slide)


@pytest.mark.parametrize("name", ["rgba.png", "gray.png", "palette.png", "straight.tif", "premultiplied.tif"])
def test_what_is_transparent_in_a_mask_is_background(tmp_path: Path, name: str) -> None:
    mask = disc(120, 160, 40)
    rgba = np.zeros((120, 160, 4), np.uint8)
    rgba[mask] = 200, 0, 0, 255
    rgba[60:70][mask[60:70], 3] = 100  # an overlay, as annotation tools paint it
    if name == "premultiplied.tif":
        rgba[60:70][mask[60:70], 0] = 78
    if name.endswith(".tif"):
        alpha = "assocalpha" if name == "premultiplied.tif" else "unassalpha"
        tifffile.imwrite(tmp_path / name, rgba, photometric="rgb", extrasamples=[alpha])
    elif name == "rgba.png":
        Image.fromarray(rgba).save(tmp_path / name)
    elif name == "gray.png":
        Image.fromarray(rgba[..., [0, 3]]).save(tmp_path / name)
    else:
        picture = Image.fromarray(mask.astype(np.uint8), "P")
        picture.putpalette([255, 255, 255, 0, 90, 0])
        picture.save(tmp_path / name, transparency=0)
    assert np.array_equal(read_mask(tmp_path / name, Blank(1600, 1200)).mask, mask)


@pytest.fixture
def here(tmp_path: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """slide.tif, half of it tissue, and a bundle with a fast encoder."""
    shutil.copytree(small_bundle, tmp_path / "mclst-bundle")
    write_slide(tmp_path / "slide.tif", disc(1200, 1600, 450))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def infer(*words: str) -> Result:
    return CliRunner().invoke(main, ["slide.tif", "--no-picture", *words])


def test_a_dense_map_and_its_ome_tiff(here: Path) -> None:
    done = infer("--grid", "20", "--genes", "GENE7, GENE2")
    assert done.exit_code == 0, done.output
    adata = anndata.read_h5ad("slide.h5ad")
    assert np.isfinite(adata.X).all() and 0.25 < adata.n_obs / (40 * 30) < 0.45
    assert f"{40 * 30 - adata.n_obs:,} skipped as background" in done.stderr
    assert int(adata.uns["mclst"]["skipped_background"]) == 40 * 30 - adata.n_obs
    assert (
        json.loads((here / "slide.run.json").read_text())["run"]["skipped_background"]
        == 40 * 30 - adata.n_obs
    )
    with tifffile.TiffFile("slide.genes.ome.tif") as tif:
        assert tif.is_ome and tif.series[0].axes == "CYX"
        planes = tif.series[0].asarray()
        xml = tif.ome_metadata or ""
    assert 'Name="GENE7"' in xml and 'PhysicalSizeX="20.0"' in xml
    expected = np.full((2, 30, 40), np.nan, np.float32)
    for name, values in zip(adata.obs_names, adata[:, ["GENE7", "GENE2"]].X, strict=True):
        column, row = map(int, name.split("x"))
        expected[:, row, column] = values
    np.testing.assert_array_equal(planes, expected)


def test_an_ome_tiff_lies_on_a_slide_whose_axes_differ(tmp_path: Path) -> None:
    """A viewer lays its pixels over the slide's by µm, along each axis by the scale of that axis."""
    everywhere = TissueMask(np.ones((80, 120), np.bool_), "everywhere")
    # The last: --mpp 0.5 for a slide that says otherwise.
    for mpp, side_um in (((0.51, 0.49), (51, 49)), (0.5, (50, 50)), ((0.4, 0.5), (50, 50))):
        grid = make_grid(Blank(1200, 800, mpp), 50, 0.5, everywhere)
        assert grid.stride_px == 100
        with h5py.File(tmp_path / "map.h5ad", "w") as file:
            file["X"] = np.arange(len(grid.spots), dtype=np.float32)[:, None]
        write_ome_tiff(tmp_path / "map.h5ad", tmp_path / "a.ome.tif", grid, ["A"], [0])
        with tifffile.TiffFile(tmp_path / "a.ome.tif") as tif:
            sizes = [
                float(size) for size in re.findall(r'PhysicalSize[XY]="([^"]+)"', tif.ome_metadata or "")
            ]
        np.testing.assert_allclose(sizes, side_um, rtol=1e-12)


@pytest.mark.slow
def test_levels_of_the_pyramid_are_means_of_what_is_known(here: Path) -> None:
    done = infer("--grid", "2.5", "--genes", "GENE1")
    assert done.exit_code == 0, done.output
    with tifffile.TiffFile("slide.genes.ome.tif") as tif:
        levels = [level.asarray().reshape(level.shape[-2:]) for level in tif.series[0].levels]
    assert [level.shape for level in levels] == [(240, 320), (120, 160)]
    blocks = levels[0].astype(np.float64).reshape(120, 2, 160, 2)
    known = np.isfinite(blocks).sum(axis=(1, 3))
    sums = np.nansum(blocks, axis=(1, 3))
    np.testing.assert_array_equal(np.isnan(levels[1]), known == 0)
    np.testing.assert_allclose(levels[1][known > 0], (sums[known > 0] / known[known > 0]), rtol=1e-6)
    odd = downsample(np.arange(6, dtype=np.float32).reshape(1, 2, 3))
    np.testing.assert_array_equal(odd, [[[2.0, 3.5]]])


def test_a_mask_from_outside_decides(here: Path) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[:30, :40] = 1
    Image.fromarray(mask).save("mask.png")
    assert infer("--grid", "20", "--tissue-mask", "mask.png").exit_code == 0
    adata = anndata.read_h5ad("slide.h5ad")
    assert adata.n_obs == 20 * 15 and (adata.obsm["spatial"] < (800, 600)).all()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "either --spots or --grid"),
        (("--grid", "20", "--spots", "x.csv"), 2, "either --spots or --grid"),
        (("--spots", "x.csv", "--genes", "GENE1"), 2, "belong to --grid"),
        (("--grid", "20", "--genes", "GENE1,NOPE"), 4, "NOPE"),
        (("--grid", "20", "--genes", "gene1"), 4, "the bundle has GENE1"),
        (("--grid", "20", "--genes", "GENE1,GENE1"), 4, "twice"),
        (("--grid", "nan"), 2, "grid"),
        (("--grid", "0"), 2, "grid"),
        (("--grid", "20", "--tissue-mask", "absent.png"), 4, "absent.png"),
        (("--grid", "20", "--max-bad-tiles", "many"), 2, "many"),
        (("--grid", "20", "--max-bad-tiles", "101%"), 2, "101%"),
    ],
)
def test_what_does_not_go_together(here: Path, words: tuple[str, ...], code: int, message: str) -> None:
    done = infer(*words)
    assert done.exit_code == code and message in done.stderr and "Traceback" not in done.stderr, done.output
    assert {path.name for path in here.iterdir()} == {"slide.tif", "mclst-bundle"}


def test_a_grid_needs_to_know_the_size_of_a_pixel(here: Path) -> None:
    tifffile.imwrite("slide.tif", np.full((300, 300, 3), PINK, np.uint8), photometric="rgb", metadata=None)
    done = infer("--grid", "20")
    assert done.exit_code == 4 and "--mpp" in done.stderr
    assert infer("--grid", "20", "--mpp", "0.5").exit_code == 0


MEASURE = """
import resource, sys
from mclst.runtime.cli.infer import main
try:
    main(["slide.tif", "--grid", sys.argv[1], "--out", sys.argv[1] + ".h5ad", "-q", "--no-picture"])
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_hardly_grows_with_the_number_of_tiles(here: Path) -> None:
    """850 to 41,000 tiles: what grows is the table of spots, some hundred bytes a row."""
    peaks, counts = [], []
    for stride in ("14", "2"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, stride], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
        counts.append(anndata.read_h5ad(f"{stride}.h5ad", backed="r").n_obs)
    assert counts[0] < 1000 and counts[-1] > 35_000
    assert peaks[-1] - peaks[0] < 100, (counts, peaks)  # MB


@pytest.mark.slow
def test_too_many_bad_tiles_fail_the_run_and_the_rest_is_kept(slides: Path, here: Path) -> None:
    shutil.copy(slides / "CMU-1-Small-Region.onebadtile.svs", here / "bad.svs")
    words = ["bad.svs", "--grid", "12", "--no-picture"]
    mask = np.full((59, 44), 255, np.uint8)
    Image.fromarray(mask).resize((2220, 2967)).save("mask.png")
    done = CliRunner().invoke(main, [*words, "--tissue-mask", "mask.png", "--max-bad-tiles", "0.5%"])
    assert done.exit_code == 4 and "tiles cannot be read" in done.stderr and "--max-bad-tiles" in done.stderr
    assert not Path("bad.h5ad").exists()
    done = CliRunner().invoke(main, [*words, "--tissue-mask", "mask.png", "--max-bad-tiles", "500"])
    assert done.exit_code == 0, done.output
    adata = anndata.read_h5ad("bad.h5ad")
    x, y = np.floor(adata.obsm["spatial"]).T
    over = (x + 16 > 960) & (x - 16 < 1200) & (y + 16 > 1200) & (y - 16 < 1440)
    assert np.array_equal(np.isnan(adata.X).any(axis=1), over) and over.any()
    assert len(json.loads(Path("bad.run.json").read_text())["run"]["failed"]) == over.sum()


def test_a_grid_keeps_to_a_region(tmp_path: Path) -> None:
    corner = [[[0, 0], [500, 0], [500, 300], [0, 300]]]
    region = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": corner}}
    (tmp_path / "r.geojson").write_text(json.dumps(region))
    whole = make_grid(Blank(1000, 800), 50.0, 0.5, TissueMask(np.ones((80, 100), np.bool_), "everywhere"))
    part = restrict_grid(whole, tmp_path / "r.geojson")
    xy = whole.spots.xy_px
    inside = (xy[:, 0] < 500) & (xy[:, 1] < 300)
    np.testing.assert_array_equal(part.spots.xy_px, xy[inside])
    assert part.spots.id.tolist() == whole.spots.id[inside].tolist()
    assert part.skipped == whole.skipped + int((~inside).sum()) and part.columns == whole.columns
