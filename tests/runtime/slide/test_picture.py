"""JPEG and PNG pictures against Pillow."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profile import quick
from PIL import Image
from synthetic_slides import tissue, write_layout

from mclst.runtime.errors import ResourceError, SlideError
from mclst.runtime.slide import picture as pillow_reader
from mclst.runtime.slide import tiff_level
from mclst.runtime.slide.open import open_slide


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGB", "jpeg", {}),
        ("L", "jpeg", {}),
        ("CMYK", "jpeg", {}),
        ("RGB", "jpeg", {"progressive": True}),
        ("RGB", "jpeg", {"subsampling": 0, "dpi": (72, 72)}),
        ("RGB", "png", {}),
        ("L", "png", {}),
        ("P", "png", {}),
        ("1", "png", {}),
    ],
)
def test_pictures_equal_pillow(tmp_path: Path, mode: str, form: str, options: dict[str, Any]) -> None:
    path = tmp_path / "a"
    Image.fromarray(tissue()).convert(mode).save(path, format=form, **options)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 420, 300), np.asarray(Image.open(path).convert("RGB")))
        assert (slide.mpp, slide.vendor, len(slide.levels)) == (None, form, 1)


def test_exif_orientation_is_left_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(tissue()).save(tmp_path / "a.jpg", exif=exif)
    with open_slide(tmp_path / "a.jpg") as slide:
        assert (slide.width_px, slide.height_px) == (420, 300)


def test_transparent_png_lies_over_white(tmp_path: Path) -> None:
    rgba = np.dstack([tissue(), tissue(seed=1)[..., :1]])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    opacity = rgba[..., 3:] / 255.0
    with open_slide(tmp_path / "a.png") as slide:
        pixels = slide.read(0, 0, 420, 300)
    assert np.abs(pixels - (rgba[..., :3] * opacity + 255.0 * (1 - opacity))).max() <= 1


def test_sixteen_bit_pngs_are_refused(tmp_path: Path) -> None:
    import imagecodecs

    for pixels in (np.zeros((20, 20, 3), np.uint16), np.zeros((20, 20), np.uint16)):
        (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
        with pytest.raises(SlideError, match="16 bits per channel"):
            open_slide(tmp_path / "a.png")


@settings(quick, max_examples=40)
@given(form=st.sampled_from(["jpeg", "png"]), share=st.floats(0, 1, exclude_max=True))
def test_a_picture_cut_anywhere_never_gives_wrong_pixels(
    tmp_path_factory: pytest.TempPathFactory, form: str, share: float
) -> None:
    path = tmp_path_factory.getbasetemp() / f"cut.{form}"
    Image.fromarray(tissue(90, 120)).save(path, format=form)
    with Image.open(path) as image:
        expected = np.asarray(image)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    try:
        with open_slide(path) as slide:
            np.testing.assert_array_equal(slide.read(0, 0, 120, 90), expected)
            assert form == "png"  # the closing chunk alone may be missing; a JPEG must be whole
    except SlideError:
        pass


def test_what_is_too_large_to_decode_in_one_piece_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pillow_reader, "MAX_DECODED_PX", 1000)
    monkeypatch.setattr(tiff_level, "MAX_DECODED_PX", 1000)
    for form in ("jpeg", "png"):
        Image.fromarray(tissue()).save(tmp_path / "a", format=form)
        with pytest.raises(ResourceError, match="tiled TIFF"):
            open_slide(tmp_path / "a")
    path, _ = write_layout(tmp_path, "one deflate strip")
    with pytest.raises(ResourceError, match="tiled TIFF"):
        open_slide(path)


@pytest.mark.slow
def test_large_jpeg_equals_pillow_without_a_bomb_warning(her2st: Path) -> None:
    path = her2st / "images" / "C4.jpg"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_slide(path) as slide:
            pixels = slide.read(4000, 5000, 1500, 900)
            assert (slide.width_px, slide.height_px, slide.reader) == (9278, 9916, "pillow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(Image.open(path).crop((4000, 5000, 5500, 5900)))
    np.testing.assert_array_equal(pixels, expected)
