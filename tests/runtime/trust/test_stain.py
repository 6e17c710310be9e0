"""Brightfield H&E is accepted however it is stained and scanned; anything else is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from calibrated import held_out
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profile import quick
from numpy.typing import NDArray
from PIL import Image
from refusals import tree
from small_model import Small
from synthetic_slides import STAINS, stained, tissue

from mclst.export.calibrate import calibrate
from mclst.runtime.cli.infer import main
from mclst.runtime.errors import StainError
from mclst.runtime.slide.base import Level, Slide, TileReadError
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.grid import make_grid
from mclst.runtime.tiling.tissue import find_tissue
from mclst.runtime.trust.calibration import stain_values
from mclst.runtime.trust.places import TISSUE_PLACES, check_stain, read_stain
from mclst.runtime.trust.stain import Stain, doubt_stain, measure_stain, name_other_stain, stain_vectors
from mclst.runtime.trust.verdict import NOT_CALIBRATED, compare_colors, judge
from mclst.sections.tables.spots import read_spots

Pixels = NDArray[np.uint8]
DAB = np.array([0.27, 0.57, 0.78])
"""Optical density of DAB (Ruifrok and Johnston 2001)."""
GLASS = np.full((20, 8, 8, 3), 245, np.uint8)


def places(pixels: Pixels) -> Pixels:
    """A picture cut into places of 20 x 20 px."""
    height, width = (side - side % 20 for side in pixels.shape[:2])
    cut = pixels[:height, :width].reshape(height // 20, 20, width // 20, 20, 3)
    return np.ascontiguousarray(cut.transpose(0, 2, 1, 3, 4).reshape(-1, 20, 20, 3))


def named(pixels: Pixels, glass: Pixels = GLASS) -> str:
    return name_other_stain(measure_stain(places(pixels), glass))


def absorbed(amounts: NDArray[np.float64], densities: NDArray[np.float64]) -> Pixels:
    """RGB of stains of `densities` [k, 3] in `amounts` [h, w, k], by the law of Beer and Lambert."""
    rgb: Pixels = np.round(245 * 10 ** -(amounts @ densities)).astype(np.uint8)
    return rgb


@settings(quick, max_examples=25, derandomize=True)
@given(
    hematoxylin=st.floats(0, 1),
    eosin=st.floats(0, 1),
    strength=st.floats(0.35, 1.7),
    exposure=st.floats(0.5, 1.0),
    gain=st.tuples(*[st.floats(0.82, 1.0)] * 3),
    gamma=st.floats(0.8, 1.3),
    glass=st.booleans(),
)
def test_h_and_e_is_accepted_however_it_is_stained_and_scanned(
    hematoxylin: float, eosin: float, strength: float, exposure: float, gain: tuple[float, ...],
    gamma: float, glass: bool,
) -> None:  # fmt: skip
    """From one stain alone to both, faded or strong, dark or of another scanner, with and without glass."""
    if hematoxylin + eosin < 0.4:
        hematoxylin += 0.4
    amounts = np.random.default_rng(3).gamma(2, 0.35, (60, 60, 2)) * (hematoxylin, eosin) * strength

    def scanned(pixels: Pixels) -> Pixels:
        return np.round((pixels / 255.0) ** gamma * exposure * np.array(gain) * 255).astype(np.uint8)

    glass_places = scanned(GLASS) if glass else np.empty((0, 8, 8, 3), np.uint8)
    assert named(scanned(stained(amounts)), glass_places) == ""


def dab(share: float) -> Pixels:
    """Nuclei of hematoxylin, of which a share is brown."""
    rng = np.random.default_rng(4)
    amounts = np.zeros((100, 100, 2))
    positive = rng.random((10, 10)) < share
    amounts[..., 1] = np.kron(positive, np.ones((10, 10))) * rng.uniform(0.5, 1.2, (100, 100))
    amounts[..., 0] = 0.35 * (amounts[..., 1] == 0)
    return absorbed(amounts, np.stack([STAINS[0], DAB]))


def fluorescence(channels: tuple[int, ...]) -> Pixels:
    light = np.zeros((100, 100, 3))
    for channel in channels:
        light[..., channel] = np.kron(np.random.default_rng(channel).random((20, 20)) < 0.3, np.ones((5, 5)))
    return np.round(light * 220 + 6).astype(np.uint8)


def sky(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Pixels:
    """A clear sky with the noise of a camera."""
    fall = np.linspace(0, 1, 200)[:, None, None]
    colors = np.broadcast_to((1 - fall) * np.array(top) + fall * np.array(bottom), (200, 200, 3))
    noisy = colors + np.random.default_rng(6).normal(0, 2, colors.shape)
    return np.round(noisy).astype(np.uint8)


def sea() -> Pixels:
    """Waves: blues of all brightness, from pixel to pixel."""
    light = np.random.default_rng(8).uniform(0.4, 1.0, (200, 200, 1))
    hue = np.random.default_rng(9).uniform(0, 25, (200, 200, 1))
    return np.round(light * np.array((40, 110, 200)) + hue * (0, 1, 0)).astype(np.uint8)


def dim(pixels: Pixels) -> Pixels:
    return np.round(pixels * 0.3 + 10).astype(np.uint8)


def photograph(name: str) -> Callable[[], Pixels]:
    def load() -> Pixels:
        if name == "china":
            from sklearn.datasets import load_sample_image

            return np.asarray(load_sample_image("china.jpg"))
        data = pytest.importorskip("skimage.data")
        return np.asarray(getattr(data, name)())

    return load


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: dab(0.9), "DAB"),
        (lambda: dab(0.4), "DAB"),
        (lambda: fluorescence((2,)), "fluorescence"),
        (lambda: fluorescence((0, 1, 2)), "fluorescence"),
        (lambda: dim(fluorescence((1,))), "fluorescence"),
        (lambda: np.zeros((100, 100, 3), np.uint8), "black"),
        (lambda: np.full((100, 100, 3), 244, np.uint8), "glass"),
        (lambda: tissue()[..., 1:2].repeat(3, axis=2), "gray"),
        (lambda: sky((60, 110, 190), (170, 205, 235)), "sky"),
        (lambda: sky((70, 130, 180), (100, 149, 237)), "sky"),
        (sea, "sky"),
        (photograph("immunohistochemistry"), "DAB"),
        (photograph("astronaut"), "photograph"),
        (photograph("chelsea"), "photograph"),
        (photograph("china"), "photograph"),
    ],
)
def test_what_is_no_h_and_e_is_named(make: Callable[[], Pixels], word: str) -> None:
    pixels = make()
    assert word in named(pixels, places(pixels) if word == "photograph" else GLASS)


def test_a_little_dab_among_h_and_e_is_accepted() -> None:
    """Pigment and hemosiderin are brown, too; 5 % of nuclei must not refuse a slide."""
    assert named(dab(0.05)) == ""


def test_a_green_marker_across_h_and_e_is_accepted() -> None:
    """Ink on a sixth of the places has a third of the color."""
    pixels = 255 - 0.5 * (255 - tissue(240, 240).astype(np.float64))
    pixels[:, 100:140] *= (0.1, 0.6, 0.25)
    assert named(np.round(pixels).astype(np.uint8)) == ""


PUBLISHED = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
"""Hematoxylin and eosin of Macenko et al. (2009), as their published code has them."""
HEMATOXYLIN, EOSIN = (0.644, 0.717, 0.267), (0.093, 0.954, 0.283)
"""Of ImageJ's Colour Deconvolution (Landini et al. 2021), and so are the pairs below."""
OTHERS = {
    "Masson's trichrome": ((0.800, 0.591, 0.105), (0.100, 0.737, 0.668), "trichrome"),
    "Azan": ((0.853, 0.509, 0.113), (0.093, 0.866, 0.491), "trichrome"),
    "Alcian blue": ((0.875, 0.458, 0.158), (0.553, 0.754, 0.354), "Alcian blue"),
    "DAB everywhere": (HEMATOXYLIN, tuple(DAB), "DAB"),
}


def pair(first: object, second: object) -> Stain:
    """Two stains, each alone in places and mixed in the others."""
    amounts = np.random.default_rng(7).gamma(1.0, 0.35, (100, 100, 2))
    amounts[:30, :, 0] = 0
    amounts[30:60, :, 1] = 0
    return measure_stain(places(absorbed(amounts, np.array([first, second]))), GLASS)


@pytest.mark.parametrize("name", OTHERS)
def test_another_pair_of_stains_is_refused_or_doubted_by_its_name(name: str) -> None:
    bluer, redder, word = OTHERS[name]
    stain = pair(bluer, redder)
    assert word in name_other_stain(stain) or word in doubt_stain(stain)
    if not name_other_stain(stain):
        verdict = judge(None, None, 0.95, stain)
        assert "it may be another stain than H&E" in verdict.text and word in verdict.text
        assert word in verdict.as_dict()["colors"]


MAGENTA = (0.175, 0.972, 0.155)
"""PAS of ImageJ; some pictures of H&E have an eosin like it."""


@pytest.mark.parametrize(
    "vectors",
    [
        PUBLISHED,
        (HEMATOXYLIN, EOSIN),
        (HEMATOXYLIN, PUBLISHED[1]),
        ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11)),  # Ruifrok and Johnston 2001
        ((0.47, 0.88, 0.11), MAGENTA),  # of two pictures of H&E in teaching collections
    ],
)
def test_vectors_that_h_and_e_has_are_not_doubted(vectors: tuple[object, object]) -> None:
    stain = pair(*vectors)
    assert name_other_stain(stain) == doubt_stain(stain) == ""
    assert judge(None, None, 0.95, stain).text == NOT_CALIBRATED


def test_a_calibrated_bundle_compares_with_its_own_reference_instead() -> None:
    stains = {"H&E": pair(*PUBLISHED), "PAS": pair(PUBLISHED[0], MAGENTA)}
    calibration = calibrate(held_out(groups=2), stain=np.array([stain_values(stains["H&E"])]))
    assert compare_colors(stains["H&E"], calibration) == ""
    assert "the hue of eosin" in compare_colors(stains["PAS"], calibration)
    own = calibrate(held_out(groups=2), stain=np.array([stain_values(stains["PAS"])]))
    assert "another stain" not in judge(own, np.zeros(3), 0.95, stains["PAS"]).text


def test_macenko_finds_the_stains_that_were_mixed() -> None:
    rng = np.random.default_rng(5)
    amounts = rng.gamma(1.0, 0.4, (20_000, 2))
    amounts[:4000, 0] = 0
    amounts[4000:8000, 1] = 0
    density = amounts @ STAINS + rng.normal(0, 0.002, (20_000, 3))
    for estimate, truth in zip(stain_vectors(density[amounts.sum(1) > 0.2]), STAINS, strict=True):
        cosine = float(np.dot(estimate, truth) / np.linalg.norm(truth))
        assert np.degrees(np.arccos(min(cosine, 1))) < 4


class Half(Slide):
    """A slide whose left half cannot be decoded."""

    def __init__(self) -> None:
        super().__init__(Path("half"), reader="made", vendor="made", levels=(Level(400, 300, 1.0, (64, 64)),))
        self.read_px = 0

    def _read_inside(self, pixels: Pixels, x: int, y: int, level: int) -> None:
        if x < 200:
            raise TileReadError("half: cannot be decoded")
        self.read_px += pixels.shape[0] * pixels.shape[1]
        pixels[:] = tissue(300, 400)[y : y + pixels.shape[0], x : x + pixels.shape[1]]

    def close(self) -> None:
        pass


def test_places_that_cannot_be_read_are_left_out() -> None:
    slide = Half()
    rng = np.random.default_rng(0)
    stain = read_stain(slide, rng.uniform((0, 0), (400, 300), (5000, 2)))
    assert stain is not None and 60 < stain.places < 190 and name_other_stain(stain) == ""
    assert read_stain(slide, np.array([[20.0, 20.0], [100.0, 200.0]])) is None
    assert slide.read_px <= (TISSUE_PLACES + 144) * 24 * 24


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Small, small_bundle: Path) -> Path:
    """A working folder with a slide of DAB, an H&E slide and spots on both."""
    picture = np.full((300, 400, 3), 245, np.uint8)
    picture[:200, :300] = np.tile(dab(0.6), (2, 3, 1))
    Image.fromarray(picture).save(tmp_path / "dab.png")
    Image.open(small.slide).save(tmp_path / "he.png")
    (tmp_path / "spots.tsv").write_bytes(small.spots.read_bytes())
    (tmp_path / "mclst-bundle").symlink_to(small_bundle)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def infer(*words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--no-html", "--no-picture"])


def test_another_stain_is_refused_before_anything_is_written(here: Path) -> None:
    before = tree(here)
    done = infer("dab.png", "--spots", "spots.tsv")
    assert done.exit_code == 4 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "dab.png is no H&E slide" in line and "DAB" in line and "--any-stain" in line
    assert tree(here) == before


def test_any_stain_predicts_it_all_the_same(here: Path) -> None:
    done = infer("dab.png", "--spots", "spots.tsv", "--any-stain")
    assert done.exit_code == 0, done.output
    assert (here / "dab.h5ad").is_file()


def test_in_a_cohort_the_other_slides_go_on(here: Path) -> None:
    rows = (
        "slide,spots,name,any-stain",
        "dab.png,spots.tsv,a,",
        "he.png,spots.tsv,b,",
        "dab.png,spots.tsv,c,true",
    )
    (here / "slides.csv").write_text("\n".join(rows) + "\n")
    done = infer("--slides", "slides.csv", "--out", "maps")
    assert done.exit_code == 3, done.output
    assert [path.name for path in sorted((here / "maps").glob("*.h5ad"))] == ["b.h5ad", "c.h5ad"]
    slides = json.loads((here / "maps" / "cohort.run.json").read_text())["slides"]
    assert [slide["verdict"] is not None for slide in slides] == [False, True, True]


def test_the_real_fluorescence_slide_is_named(slides: Path) -> None:
    with open_slide(slides / "test3-DAPI-2-_387_.ndpi") as slide:
        assert slide.mpp is not None
        grid = make_grid(slide, 100, slide.mpp, find_tissue(slide, slide.mpp))
        with pytest.raises(StainError, match="fluorescence"):
            check_stain(slide, grid.spots.xy_px)


def test_the_real_slide_of_skin_is_accepted(slides: Path) -> None:
    with open_slide(slides / "CMU-1-Small-Region.svs") as slide:
        assert slide.mpp is not None
        grid = make_grid(slide, 100, slide.mpp, find_tissue(slide, slide.mpp))
        stain = check_stain(slide, grid.spots.xy_px)
    assert stain is not None and stain.h_and_e > 0.95 and doubt_stain(stain) == ""


CHANGES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "as it is": lambda x: x,
    "faded": lambda x: x**0.3,
    "strong": lambda x: x**1.6,
    "dark": lambda x: 0.5 * x,
    "overexposed": lambda x: np.minimum(1.2 * x, 1),
    "yellow": lambda x: x * (1, 0.95, 0.78),
    "green": lambda x: x * (0.85, 1, 0.85),
    "pale": lambda x: 0.6 * x.mean(axis=-1, keepdims=True) + 0.4 * x,
}


@pytest.mark.parametrize("section", ["C2", "C4"])
def test_real_sections_are_accepted_with_any_change_of_color(her2st: Path, section: str) -> None:
    """A tenth of the spots alone, and without any glass in sight: nothing else is known of the color."""
    spots = read_spots(her2st / "spots" / f"{section}_selection.tsv").xy_px[::10].astype(int)
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(her2st / "images" / f"{section}.jpg") as picture:
        cut = [np.asarray(picture.crop((x - 60, y - 60, x + 60, y + 60)).reduce(4)) for x, y in spots]
    for name, change in CHANGES.items():
        pixels = np.round(255 * change(np.stack(cut) / 255.0)).astype(np.uint8)
        stain = measure_stain(pixels, pixels[:0])
        assert name_other_stain(stain) == doubt_stain(stain) == "", name


def test_a_tiff_of_one_color_of_h_and_e_is_accepted(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "pink.tif", np.full((200, 200, 3), (205, 130, 180), np.uint8))
    with open_slide(tmp_path / "pink.tif") as slide:
        assert check_stain(slide, np.array([[100.0, 100.0]])) is not None
