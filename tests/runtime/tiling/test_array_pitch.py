"""µm per pixel from the array the spots lie on, and whose word counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick
from numpy.typing import NDArray

from mclst.runtime.slide.base import Level, Slide
from mclst.runtime.tiling.array_pitch import fit_array, slide_resolution
from mclst.sections.columns import Columns
from mclst.sections.section import Spots
from mclst.sections.tables.spots import read_spots


class Sized(Slide):
    """A slide that says `mpp`, never read."""

    def __init__(
        self, mpp: float | None, *, objective: tuple[float, str] | None = None, vendor: str = "none"
    ) -> None:
        super().__init__(
            Path("slide.svs"), reader="none", vendor=vendor, levels=(Level(9, 9, 1.0, (9, 9)),), mpp=mpp,
            mpp_source="Aperio MPP", objective=objective,
        )  # fmt: skip

    def _read_inside(self, pixels: NDArray[np.uint8], x: int, y: int, level: int) -> None:
        raise AssertionError("nothing is read")

    def close(self) -> None:
        """Nothing is open."""


def placed(
    array: NDArray[np.int64], um: NDArray[np.float64], mpp: float, *, turn: float = 0.0, mirror: bool = False,
    noise: float = 0.0, variant: str = "Space Ranger 2", seed: int = 0,
) -> Spots:  # fmt: skip
    """Spots at `um` on a slide of `mpp`, turned by `turn` and maybe mirrored."""
    c, s = np.cos(turn), np.sin(turn)
    xy = um @ np.array([[c, s], [-s, c]]) * ((-1.0, 1.0) if mirror else (1.0, 1.0)) / mpp + 7000
    xy += np.random.default_rng(seed).normal(0, noise, xy.shape) / mpp
    n = len(array)
    return Spots(
        Path("spots.csv"),
        variant,
        np.arange(n).astype(np.str_),
        xy,
        array,
        np.arange(n),
        Columns(range(n)),
        None,
        "made up",
    )


def visium(rows: int = 12, columns: int = 20) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """array_col, array_row of a Visium array, and its places in µm by plain trigonometry."""
    row, half = np.divmod(np.arange(rows * columns), columns)
    column = 2 * half + row % 2
    centers = np.stack([half * 100.0 + (row % 2) * 50.0, row * 100.0 * np.sin(np.pi / 3)], axis=1)
    return np.stack([column, row], axis=1), centers


@quick
@given(
    mpp=st.floats(0.1, 5),
    turn=st.floats(0, 6.3),
    mirror=st.booleans(),
    noise=st.floats(0, 2),
    seed=st.integers(0, 99),
)
def test_a_visium_array_tells_its_resolution(
    mpp: float, turn: float, mirror: bool, noise: float, seed: int
) -> None:
    array, um = visium()
    fit = fit_array(placed(array, um, mpp, turn=turn, mirror=mirror, noise=noise, seed=seed))
    assert fit is not None and fit.pitch_um == 100
    assert fit.mpp == pytest.approx(mpp, rel=1e-6 + noise / 1000)
    assert fit.residual_px * mpp == pytest.approx(noise * 2**0.5, rel=0.25, abs=1e-6)


@pytest.mark.parametrize("diameter_um", [55, 60, 65, 70])
def test_a_spot_diameter_is_never_used(diameter_um: float) -> None:
    """Space Ranger's is 60 to 70 µm where the spot is 55: µm/px made of it would be a fifth too small."""
    array, um = visium()
    spots = dataclasses.replace(placed(array, um, 0.5), spot_diameter_px=diameter_um / 0.5)
    assert slide_resolution(Sized(None), spots).mpp == pytest.approx(0.5)
    bare = dataclasses.replace(spots, array_xy=None)
    assert slide_resolution(Sized(None), bare).mpp is None


def test_other_arrays() -> None:
    square = np.stack(np.divmod(np.arange(200), 14), axis=1)
    legacy = fit_array(placed(square, square * 200.0, 0.69, noise=10, variant="legacy ST selection"))
    assert legacy is not None and legacy.mpp == pytest.approx(0.69, rel=0.01) and legacy.pitch_um == 200
    hd = placed(square, square * 8.0, 0.27, variant="Visium HD")
    object.__setattr__(hd, "id", np.array([f"s_008um_{i:05}_00000-1" for i in range(200)]))
    fit = fit_array(hd)
    assert fit is not None and fit.mpp == pytest.approx(0.27) and fit.pitch_um == 8
    assert fit_array(placed(square, square * 200.0, 0.69)) is None, (
        "no Visium array has such columns and rows"
    )
    assert fit_array(placed(square, square * 200.0, 0.69, variant="id, x, y")) is None


def test_what_is_no_array_is_not_believed() -> None:
    array, um = visium()
    shuffled = np.random.default_rng(0).permutation(um)
    assert fit_array(placed(array, shuffled, 0.5)) is None
    assert fit_array(placed(array, um * (1.0, 1.2), 0.5)) is None, "stretched"
    assert fit_array(placed(array[:5], um[:5], 0.5)) is None, "too few"
    assert fit_array(placed(array[:15], um[:15], 0.5)) is None, "all in one row"
    assert fit_array(placed(array, um, 0.001)) is None, "no microscope has such pixels"


def test_real_arrays(her2st: Path) -> None:
    visium_folder = her2st.parent / "visium"
    for folder, mpp in (("sfe_sample01", 0.3437), ("spatial_gradients", 1.1589)):
        if not (visium_folder / folder).is_dir():
            pytest.skip("the real Visium folders are not beside this checkout (../shared/visium)")
        fit = fit_array(read_spots(visium_folder / folder, all_spots=True))
        assert fit is not None and fit.mpp == pytest.approx(mpp, rel=1e-3) and fit.residual_px < 1
    fit = fit_array(read_spots(her2st / "spots" / "C4_selection.tsv"))
    assert fit is not None and fit.mpp == pytest.approx(0.69, rel=0.02)


@pytest.mark.parametrize(
    ("slide", "array", "given_mpp", "mpp", "source", "words"),
    [
        (0.5, 0.5, None, 0.5, "Aperio MPP", ()),
        (0.505, 0.5, None, 0.505, "Aperio MPP", ()),
        (0.25, 0.5, None, 0.25, "Aperio MPP", ("0.25", "Aperio MPP", "100 µm pitch", "--mpp overrides")),
        (None, 0.5, None, 0.5, "fitted to the array of spots", ("does not say", "100 µm pitch", "within")),
        (0.25, 0.5, 0.4, 0.4, "given", ("--mpp says 0.4", "Aperio MPP", "100 µm pitch")),
        (0.4, 0.4, 0.4, 0.4, "given", ()),
        (0.25, None, None, 0.25, "Aperio MPP", ()),
        (None, None, None, None, "Aperio MPP", ()),
    ],
)  # fmt: skip
def test_whose_word_counts(
    slide: float | None, array: float | None, given_mpp: float | None, mpp: float | None, source: str,
    words: tuple[str, ...],
) -> None:  # fmt: skip
    grid, um = visium()
    spots = placed(grid, um, array or 1.0, noise=0.1, variant="Space Ranger 2" if array else "id, x, y")
    resolution = slide_resolution(Sized(slide), spots, given_mpp)
    assert (
        resolution.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))
        and resolution.source == source
    )
    note = " ".join(resolution.notes)
    assert bool(note) == bool(words) and all(word in note for word in words), note


@pytest.mark.parametrize(
    ("power", "mpp", "vendor", "doubted"),
    [
        (20, 0.499, "aperio", False),
        (20, 0.46, "hamamatsu", False),
        (40, 0.2282, "hamamatsu", False),
        (40, 0.172, "zeiss", False),
        (20, 0.25, "aperio", True),
        (40, 0.46, "hamamatsu", True),
        (40, 0.5, "aperio", True),
        (1.25, 0.5, "aperio", True),
        (20, 0.23, "mirax", False),
        (20, None, "aperio", False),
    ],
)
def test_an_objective_that_contradicts_is_told_and_changes_nothing(
    power: float, mpp: float | None, vendor: str, doubted: bool
) -> None:
    array, um = visium()
    spots = placed(array, um, 1.0, variant="id, x, y")
    resolution = slide_resolution(Sized(mpp, objective=(power, "AppMag"), vendor=vendor), spots)
    assert resolution.mpp == mpp and len(resolution.notes) == doubted
    assert all(f"{power:g}x objective (AppMag)" in note and "--mpp" in note for note in resolution.notes)
    overridden = slide_resolution(Sized(mpp, objective=(20.0, "AppMag"), vendor=vendor), spots, 0.5)
    assert overridden.mpp == 0.5 and not any("objective" in note for note in overridden.notes)
