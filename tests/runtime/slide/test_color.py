"""Colors of files become RGB as independent readers give them; a color profile is named and left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms
from synthetic_slides import tissue

from mclst.runtime.errors import SlideError
from mclst.runtime.slide.open import open_slide


def whole(path: Path) -> NDArray[np.uint8]:
    with open_slide(path) as slide:
        return slide.read(0, 0, slide.width_px, slide.height_px)


def inks() -> NDArray[np.uint8]:
    return np.dstack([255 - tissue(), 255 - tissue(seed=1)[..., :1]])


@pytest.mark.parametrize(
    "options",
    [
        {"rowsperstrip": 30},
        {"tile": (64, 64), "compression": "zlib", "predictor": True},
        {"tile": (64, 64), "planarconfig": "separate", "compression": "lzw"},
    ],
    ids=["plain strips", "deflate tiles", "planar"],
)
def test_cmyk_tiffs_become_rgb(tmp_path: Path, options: dict[str, Any]) -> None:
    cmyk = inks()
    planar = options.get("planarconfig") == "separate"
    data = np.ascontiguousarray(cmyk.transpose(2, 0, 1) if planar else cmyk)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="separated", metadata=None, **options)
    light = 1 - cmyk / 255.0
    assert np.abs(whole(tmp_path / "a.tif") - 255 * light[..., :3] * light[..., 3:]).max() <= 1
    if not planar:
        np.testing.assert_array_equal(
            whole(tmp_path / "a.tif"), Image.open(tmp_path / "a.tif").convert("RGB")
        )


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg"])
def test_cmyk_tiffs_of_pillow_read_as_pillow_reads_them(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.tif"
    Image.frombytes("CMYK", (420, 300), inks().tobytes()).save(path, compression=compression)
    np.testing.assert_array_equal(whole(path), Image.open(path).convert("RGB"))


def test_inks_that_are_not_cmyk_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", inks(), photometric="separated", extratags=[(332, 3, 1, 2, True)], metadata=None
    )
    with pytest.raises(SlideError, match="SEPARATED"):
        open_slide(tmp_path / "a.tif")


def test_planar_rgba_lies_over_white(tmp_path: Path) -> None:
    rgba = np.dstack([tissue(), tissue(seed=1)[..., :1]])
    tifffile.imwrite(
        tmp_path / "a.tif", np.ascontiguousarray(rgba.transpose(2, 0, 1)), photometric="rgb", tile=(64, 64),
        planarconfig="separate", extrasamples=["unassalpha"], metadata=None,
    )  # fmt: skip
    opacity = rgba[..., 3:] / 255.0
    over = rgba[..., :3] * opacity + 255.0 * (1 - opacity)
    assert np.abs(whole(tmp_path / "a.tif") - over).max() <= 0.5 + 1e-9


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@pytest.mark.parametrize("form", ["jpeg", "png", "tiff"])
def test_a_colour_profile_is_named_and_left_alone(tmp_path: Path, form: str) -> None:
    image = Image.fromarray(tissue())
    image.save(tmp_path / "plain", format=form)
    image.save(tmp_path / "profile", format=form, icc_profile=SRGB.tobytes())
    image.save(tmp_path / "damaged", format=form, icc_profile=b"no profile at all")
    np.testing.assert_array_equal(whole(tmp_path / "profile"), whole(tmp_path / "plain"))
    names = []
    for name in ("plain", "profile", "damaged"):
        with open_slide(tmp_path / name) as slide:
            names.append(slide.icc)
    assert names == ["", ImageCms.getProfileDescription(SRGB).strip(), "unreadable"]


@pytest.mark.slow
def test_the_profile_of_a_real_slide_is_named_alike_by_both_readers(slides: Path) -> None:
    path = slides / "CMU-1-Small-Region.svs"
    with open_slide(path) as ours, open_slide(path, reader="openslide") as theirs:
        assert ours.icc == theirs.icc
