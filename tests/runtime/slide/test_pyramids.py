"""Pyramids as libvips and tifffile write them: levels by geometry, whatever the description says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import pyvips
import tifffile
from numpy.typing import NDArray
from PIL import Image
from synthetic_slides import tissue

from mclst.runtime.slide.base import Slide
from mclst.runtime.slide.open import open_slide
from mclst.runtime.slide.segmented_slide import SegmentedSlide

WIDTH, HEIGHT = 1111, 1404
SIZES = [(1111, 1404), (555, 702), (277, 351), (138, 175), (69, 87), (34, 43)]
APERIO = (
    "Aperio Image Library v11.2.1\r\n1111x1404 [0,0 1111x1404] (64x64) JPEG/RGB Q=70|AppMag = 20|MPP = 0.499"
)
OME = (
    '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    f'<Image ID="Image:0"><Pixels DimensionOrder="XYCZT" ID="Pixels:0" SizeC="3" SizeT="1" SizeX="{WIDTH}" '
    f'SizeY="{HEIGHT}" SizeZ="1" Type="uint8" PhysicalSizeX="0.5" PhysicalSizeY="0.5">'
    '<Channel ID="Channel:0:0" SamplesPerPixel="3"/></Pixels></Image></OME>'
)
PICTURE = tissue(HEIGHT, WIDTH)
BY_LIBVIPS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "Aperio's description": (APERIO, {}),
    "Aperio's description, BigTIFF": (APERIO, {"bigtiff": True}),
    "Aperio's description, SubIFDs": (APERIO, {"subifd": True}),
    "no description": (None, {}),
    "no description, SubIFDs": (None, {"subifd": True}),
    "OME": (OME, {}),
    "OME, SubIFDs": (OME, {"subifd": True}),
}


def sizes(slide: Slide) -> list[tuple[int, int]]:
    return [(level.width_px, level.height_px) for level in slide.levels]


def by_libvips(path: Path, description: str | None, options: dict[str, Any]) -> None:
    image = pyvips.Image.new_from_array(PICTURE)
    if description is not None:
        image.set_type(pyvips.GValue.gstr_type, "image-description", description)
    image.tiffsave(
        str(path), tile=True, pyramid=True, tile_width=64, tile_height=64, compression="jpeg", **options
    )


@pytest.mark.parametrize("name", sorted(BY_LIBVIPS))
def test_every_level_that_libvips_writes_is_one(tmp_path: Path, name: str) -> None:
    description, options = BY_LIBVIPS[name]
    path = tmp_path / "slide.tif"
    by_libvips(path, description, options)
    with open_slide(path) as slide, openslide.OpenSlide(path) as oracle:
        if "subifd" not in options:  # of these OpenSlide sees the first image alone
            assert sizes(slide) == list(oracle.level_dimensions)
        assert sizes(slide) == SIZES
        assert [level.downsample for level in slide.levels] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
        for number in range(oracle.level_count):
            theirs = np.asarray(oracle.read_region((0, 0), number, SIZES[number]))[..., :3]
            np.testing.assert_array_equal(slide.read(0, 0, *SIZES[number], level=number), theirs)
        if description == APERIO:
            assert (slide.vendor, slide.mpp) == ("aperio", 0.499)


def reduced(factor: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(PICTURE).reduce(factor))[: HEIGHT // factor, : WIDTH // factor]


def by_scanner(
    path: Path, extra: list[tuple[NDArray[np.uint8], dict[str, Any]]], *, subifds: int = 0
) -> None:
    """Aperio's order: the slide, a thumbnail in strips, levels, label, macro."""
    tiled: dict[str, Any] = {
        "tile": (64, 64),
        "compression": "jpeg",
        "photometric": "rgb",
        "metadata": None,
    }
    with tifffile.TiffWriter(path) as tif:
        tif.write(PICTURE, description=APERIO, subifds=subifds or None, **tiled)
        for pixels, options in extra:
            tif.write(pixels, **{**tiled, "description": APERIO, **options})


THUMBNAIL: tuple[NDArray[np.uint8], dict[str, Any]] = (reduced(2), {"tile": None, "rowsperstrip": 16})
LABEL: tuple[NDArray[np.uint8], dict[str, Any]] = (tissue(87, 69, seed=3), {"tile": None, "subfiletype": 1})
MACRO: tuple[NDArray[np.uint8], dict[str, Any]] = (tissue(400, 900, seed=4), {"tile": None, "subfiletype": 9})


def test_thumbnail_label_and_macro_stay_out(tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    by_scanner(path, [THUMBNAIL, (reduced(4), {}), (reduced(8), {}), LABEL, MACRO])
    with open_slide(path) as slide, openslide.OpenSlide(path) as oracle:
        assert sizes(slide) == list(oracle.level_dimensions) == [SIZES[0], SIZES[2], SIZES[3]]


def test_another_picture_of_the_same_shape_is_no_level(tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    other = tissue(HEIGHT, WIDTH, seed=9)[::2, ::2][:702, :555]
    by_scanner(path, [(other, {}), (other[:351, :277], {"subfiletype": 1})])
    with open_slide(path) as slide:
        assert sizes(slide) == SIZES[:1]


def test_levels_of_ome_subifds_by_tifffile(tmp_path: Path) -> None:
    path = tmp_path / "slide.ome.tif"
    tiled: dict[str, Any] = {"tile": (64, 64), "compression": "jpeg", "photometric": "rgb"}
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as tif:
        tif.write(PICTURE, subifds=2, **tiled)
        for factor in (2, 4):
            tif.write(reduced(factor), subfiletype=1, metadata=None, **tiled)
        tif.write(LABEL[0], **tiled)
    with open_slide(path) as slide:
        assert sizes(slide) == SIZES[:3]


def test_subifds_that_lead_nowhere_cost_no_slide(tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    by_scanner(path, [(reduced(2), {"subfiletype": 1, "description": None})], subifds=1)
    with open_slide(path) as slide:
        assert sizes(slide) == SIZES[:2]
    raw = path.read_bytes()
    with tifffile.TiffFile(path) as tif:
        tag = tif.pages.first.tags["SubIFDs"]
        place, width = tag.offset + 8, 4
        (offset,) = tag.value
    assert raw[place : place + width] == offset.to_bytes(width, "little")
    for broken in (len(raw) + 50, 8, 1):
        path.write_bytes(raw[:place] + broken.to_bytes(width, "little") + raw[place + width :])
        with open_slide(path) as slide:
            assert sizes(slide) == SIZES[:1]


def test_an_overview_reads_the_coarse_level_alone(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    by_libvips(path, APERIO, {})
    with open_slide(path) as slide:
        assert isinstance(slide, SegmentedSlide)
        slide.thumbnail(80)
        assert slide.cache.decoded == 4, "the 2 x 2 tiles of the coarsest level"


def test_tissue_map_and_page_share_one_reading(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    by_libvips(path, APERIO, {})
    with open_slide(path) as slide, open_slide(path) as fresh:
        assert isinstance(slide, SegmentedSlide)
        whole, scale = slide.overview(1000)
        np.testing.assert_array_equal(whole, fresh.thumbnail(1000)[0])
        decoded = slide.cache.decoded
        for size in (1000, 500, 87):
            picture, scale = slide.overview(size)
            expected = Image.fromarray(PICTURE).resize(
                (round(WIDTH * size / HEIGHT), size), Image.Resampling.BOX
            )
            assert picture.shape == (*expected.size[::-1], 3) and scale == size / HEIGHT
            assert np.abs(picture.astype(int) - np.asarray(expected)).mean() < 4
        assert slide.cache.decoded == decoded
        assert slide.overview(1200)[0].shape[0] == 1200
