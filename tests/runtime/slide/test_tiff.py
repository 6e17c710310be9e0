"""TIFF slides: every layout and codec against numpy, µm per pixel, kinds refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profile import quick
from numpy.typing import NDArray
from synthetic_slides import LAYOUTS, PAD, cut, tissue, write_layout

from mclst.runtime.errors import SlideError
from mclst.runtime.slide.base import Slide
from mclst.runtime.slide.open import open_slide


@pytest.fixture(scope="module", params=sorted(LAYOUTS))
def layout(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Slide, list[NDArray[np.uint8]]]]:
    path, levels = write_layout(tmp_path_factory.mktemp("layout"), request.param)
    with open_slide(path) as slide:
        yield slide, levels


@settings(quick, max_examples=40)
@given(data=st.data())
def test_any_rectangle_of_any_layout(
    layout: tuple[Slide, list[NDArray[np.uint8]]], data: st.DataObject
) -> None:
    slide, levels = layout
    assert [(a.width_px, a.height_px) for a in slide.levels] == [b.shape[1::-1] for b in levels]
    assert [level.downsample for level in slide.levels] == [1.0, 2.0, 4.0][: len(levels)]
    number = data.draw(st.integers(0, len(levels) - 1))
    x, y = data.draw(st.integers(-200, 520)), data.draw(st.integers(-200, 400))
    width, height = data.draw(st.integers(1, 260)), data.draw(st.integers(1, 260))
    pixels = slide.read(x, y, width, height, level=number, pad=PAD)
    np.testing.assert_array_equal(pixels, cut(levels[number], x, y, width, height))
    pixels[:] = 0  # the caller's own: what is held must not change
    np.testing.assert_array_equal(
        slide.read(x, y, width, height, level=number, pad=PAD), cut(levels[number], x, y, width, height)
    )


def test_pyramid_in_sub_directories(tmp_path: Path) -> None:
    image = tissue()
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", bigtiff=True) as tif:
        options: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib"}
        scale = {
            "PhysicalSizeX": 250,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": 250,
            "PhysicalSizeYUnit": "nm",
        }
        tif.write(image, subifds=1, metadata={"axes": "YXS", **scale}, **options)
        tif.write(np.ascontiguousarray(image[::2, ::2]), subfiletype=1, **options)
    with open_slide(tmp_path / "a.ome.tif") as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 210, 150, level=1), image[::2, ::2])
        assert (slide.mpp, slide.mpp_source, slide.vendor) == (0.25, "OME PhysicalSizeX", "ome")


def test_the_main_image_wins_over_a_thumbnail_before_it(tmp_path: Path) -> None:
    image = tissue()
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(np.ascontiguousarray(image[::7, ::5]), photometric="rgb", metadata=None)
        tif.write(image, photometric="rgb", tile=(64, 64), metadata=None)
    with open_slide(tmp_path / "a.tif") as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 420, 300), image)


@pytest.mark.parametrize("compression", [33003, 33005])
@pytest.mark.slow
def test_aperio_jpeg2000_equals_openslide(tmp_path: Path, compression: int) -> None:
    import openslide

    path = tmp_path / "a.svs"
    tifffile.imwrite(
        path, tissue(256, 256), photometric="rgb", tile=(128, 128), compression=compression,
        compressionargs={"codecformat": "j2k", "mct": False, "reversible": True},
        description="Aperio Image Library v11|MPP = 0.5", metadata=None,
    )  # fmt: skip
    with open_slide(path) as slide, openslide.OpenSlide(path) as oracle:
        theirs = np.asarray(oracle.read_region((0, 0), 0, (256, 256)).convert("RGB"))
        np.testing.assert_array_equal(slide.read(0, 0, 256, 256), theirs)


def test_gray_and_transparent_tiffs_become_rgb(tmp_path: Path) -> None:
    rgba = np.dstack([tissue(), tissue(seed=1)[..., :1]])
    tifffile.imwrite(tmp_path / "gray.tif", rgba[..., 0])
    tifffile.imwrite(tmp_path / "white.tif", rgba[..., 0], photometric="miniswhite")
    tifffile.imwrite(tmp_path / "alpha.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    tifffile.imwrite(tmp_path / "fourth.tif", rgba, photometric="rgb", extrasamples=["unspecified"])

    def whole(name: str) -> NDArray[np.uint8]:
        with open_slide(tmp_path / name) as slide:
            return slide.read(0, 0, 420, 300)

    np.testing.assert_array_equal(whole("gray.tif"), np.repeat(rgba[..., :1], 3, axis=2))
    np.testing.assert_array_equal(whole("white.tif"), 255 - np.repeat(rgba[..., :1], 3, axis=2))
    np.testing.assert_array_equal(whole("fourth.tif"), rgba[..., :3])
    opacity = rgba[..., 3:] / 255.0
    over = rgba[..., :3] * opacity + 255.0 * (1 - opacity)
    assert np.abs(whole("alpha.tif") - over).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("header", "power"),
    [
        ("AppMag = 20", 20.0), ("AppMag = 40.000000", 40.0), ("AppMag = 40x", 40.0), ("AppMag = nan", None),
        ("AppMag = high", None), ("AppMag = -20", None), ("MPP = 0.5", None), ("OriginalAppMag = 20", None),
    ],
)  # fmt: skip
def test_the_objective_is_read_from_what_aperio_writes(
    tmp_path: Path, header: str, power: float | None
) -> None:
    path = tmp_path / "slide.svs"
    tifffile.imwrite(
        path, tissue(), photometric="rgb", tile=(64, 64), metadata=None,
        description=f"Aperio Image Library v11|Quality = 70|{header}",
    )  # fmt: skip
    with open_slide(path) as slide:
        assert slide.vendor == "aperio"
        assert slide.objective == (None if power is None else (power, "AppMag"))


@pytest.mark.parametrize(
    ("options", "mpp", "source"),
    [
        ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, 0.5, "TIFF resolution tags"),
        ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, 0.5, "TIFF resolution tags"),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None, "352.8 µm/px"),
        ({"resolution": (20000, 20000), "resolutionunit": "NONE"}, None, "says none"),
        ({"resolution": (20000, 10000), "resolutionunit": "CENTIMETER"}, 0.75, "0.5 across and 1 down"),
        ({"description": "Aperio Image|AppMag = 20|MPP = 0.2525", "tile": (64, 64)}, 0.2525, "Aperio MPP"),
        ({"description": "Aperio Image|MPP = 0,25|", "tile": (64, 64)}, 0.25, "Aperio MPP"),
        ({"description": "Aperio Image|MPP = 1e9", "tile": (64, 64)}, None, "Aperio MPP is outside"),
        ({"description": "Aperio Image|MPP = -1", "tile": (64, 64)}, None, "outside"),
        ({"description": "Aperio Image|MPP = nan", "tile": (64, 64)}, None, "outside"),
        ({"description": "Aperio Image|MPP = abc", "tile": (64, 64)}, None, "says none"),
    ],
)
def test_mpp_is_believed_only_where_believable(
    tmp_path: Path, options: dict[str, Any], mpp: float | None, source: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", tissue(), photometric="rgb", metadata=None, **options)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.mpp == pytest.approx(mpp)
        assert source in slide.mpp_source


def test_imagej_scale(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", tissue()[..., 0], imagej=True, resolution=(2, 2), metadata={"unit": "um"}
    )
    with open_slide(tmp_path / "a.tif") as slide:
        assert (slide.mpp, slide.mpp_source) == (0.5, "ImageJ scale")


@pytest.mark.parametrize(
    ("pixels", "options", "why"),
    [
        (np.zeros((40, 40, 3), np.uint16), {"photometric": "rgb"}, "16-bit unsigned"),
        (np.zeros((40, 40), np.uint16), {}, "16-bit unsigned"),
        (np.zeros((40, 40, 3), np.float32), {"photometric": "rgb"}, "32-bit floating-point"),
        (np.zeros((40, 40), bool), {}, "1-bit"),
        (np.zeros((4, 40, 40), np.uint8), {"photometric": "minisblack"}, "several planes"),
        (np.zeros((2, 40, 40, 3), np.uint8), {"photometric": "rgb"}, "several planes"),
        (np.zeros((40, 40, 5), np.uint8), {"photometric": "separated"}, "SEPARATED"),
        (np.zeros((40, 40, 3), np.uint8), {"photometric": "cielab"}, "CIELAB"),
        (
            np.zeros((40, 40), np.uint8),
            {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
            "PALETTE",
        ),
    ],
)
def test_kinds_refused_by_name(
    tmp_path: Path, pixels: NDArray[Any], options: dict[str, Any], why: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    with pytest.raises(SlideError, match=why):
        open_slide(tmp_path / "a.tif")
