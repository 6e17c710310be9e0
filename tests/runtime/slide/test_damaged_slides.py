"""Damaged and hostile files: an error in one sentence, never wrong pixels."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profile import quick
from numpy.typing import NDArray
from PIL import Image
from synthetic_slides import tissue, write_layout

from mclst.runtime.errors import MclstError, ResourceError, SlideError
from mclst.runtime.slide.base import TileReadError
from mclst.runtime.slide.open import open_slide


def small_tiff(
    *, width: int, height: int, offset: int = 200, count: int = 256, then: int = 0, **tags: int
) -> bytes:
    """A gray TIFF of one directory, byte by byte."""
    fields = {256: width, 257: height, 258: 8, 259: tags.get("compression", 1), 262: 1, 273: offset, 277: 1,
              278: height, 279: count}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + struct.pack("<I", then)
    return head.ljust(offset, b"\0") + bytes(256)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (small_tiff(width=16, height=16, then=8), "loops"),
        (small_tiff(width=16, height=16, then=99_999), "cut off"),
        (small_tiff(width=2**31, height=2**31), "damaged"),
        (small_tiff(width=2**31, height=2**31, compression=8), "in one piece"),
        (small_tiff(width=16, height=16, count=2**31), "cut off"),
        (small_tiff(width=0, height=16), "0 x 16|damaged"),
        (small_tiff(width=16, height=16, compression=6), "OJPEG"),
        (small_tiff(width=16, height=16, compression=50_999), "code 50999"),
        (b"II*\0", "damaged TIFF"),
    ],
)
def test_hostile_directories_are_refused_at_once(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises((SlideError, ResourceError), match=why):
        open_slide(tmp_path / "a.tif")


def test_small_tiff_is_well_formed(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(small_tiff(width=16, height=16))
    with open_slide(tmp_path / "a.tif") as slide:
        assert not slide.read(0, 0, 16, 16).any()


def test_what_is_no_slide_is_refused_by_content(tmp_path: Path) -> None:
    cases = {
        "": "empty",
        "<!DOCTYPE html><html>": "HTML",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0": "git-lfs pointer",
        "x,y\n1,2\n": "text",
        "\0" * 300: "zero bytes",
        "%PDF-1.7": "PDF",
        "GIF89a": "GIF",
    }
    for content, why in cases.items():
        (tmp_path / "slide.svs").write_text(content)
        with pytest.raises(SlideError, match=why):
            open_slide(tmp_path / "slide.svs")
    (tmp_path / "gone.svs").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.svs")
    paths = {
        "missing.svs": "does not exist",
        "gone.svs": "link to a file",
        "pipe.svs": "not a regular",
        ".": "folder",
    }
    for name, why in paths.items():
        with pytest.raises(SlideError, match=why):
            open_slide(tmp_path / name)
    for path in ("a" * 300, "a\0b"):
        with pytest.raises(SlideError, match="cannot be read"):
            open_slide(path)


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(tissue()).save(tmp_path / "slide.svs", format="png")
    with open_slide(tmp_path / "slide.svs") as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 420, 300), tissue())
    with pytest.raises(SlideError, match="PNG, which the tifffile reader"):
        open_slide(tmp_path / "slide.svs", reader="tifffile")
    with pytest.raises(SlideError, match="choose one of"):
        open_slide(tmp_path / "slide.svs", reader="gdal")


@pytest.fixture(scope="module")
def jpeg_pyramid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[NDArray[np.uint8]]]:
    return write_layout(tmp_path_factory.mktemp("damage"), "tiled jpeg")


@quick
@given(share=st.floats(0, 1))
def test_a_slide_cut_anywhere_never_gives_wrong_pixels(
    jpeg_pyramid: tuple[Path, list[NDArray[np.uint8]]], tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    whole = jpeg_pyramid[0].read_bytes()
    path = tmp_path_factory.mktemp("cut") / "a.tif"
    path.write_bytes(whole[: int(len(whole) * share)])
    try:
        with open_slide(path) as slide:
            np.testing.assert_array_equal(slide.read(0, 0, 420, 300), jpeg_pyramid[1][0])
            assert share > 0.5
    except SlideError:
        assert share < 1


@quick
@given(data=st.data())
def test_a_jpeg_tile_that_loses_its_end_is_an_error(
    jpeg_pyramid: tuple[Path, list[NDArray[np.uint8]]],
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    path, (image, *_) = jpeg_pyramid
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[7], tif.pages[0].databytecounts[7]
    content = bytearray(path.read_bytes())
    lost = data.draw(st.integers(2, count))
    content[offset + count - lost : offset + count] = data.draw(st.sampled_from([b"\0", b"\xff"])) * lost
    damaged = tmp_path_factory.mktemp("damage") / "a.tif"
    damaged.write_bytes(content)
    with open_slide(damaged) as slide:
        x, y, height, width = (7 % 5) * 96, (7 // 5) * 64, 64, 96
        with pytest.raises(TileReadError, match="column 2, row 1 of level 0"):
            slide.read(x + 95, y + 63, 1, 1)
        np.testing.assert_array_equal(slide.read(0, 0, 420, y), image[:y])
        np.testing.assert_array_equal(
            slide.read(x + width, y, 100, height), image[y : y + height, x + width :][:, :100]
        )


@pytest.mark.parametrize("start", [0.2, 0.5, 0.8])
def test_zeros_inside_a_jpeg_tile_are_an_error(slides: Path, tmp_path: Path, start: float) -> None:
    """Half a kilobyte lost in the middle: the codec itself would go on, and give gray."""
    source = slides / "CMU-1-Small-Region.svs"
    with tifffile.TiffFile(source) as tif:
        offset, count = tif.pages[0].dataoffsets[54], tif.pages[0].databytecounts[54]
    content = bytearray(source.read_bytes())
    at = offset + int(count * start)
    content[at : at + 512] = bytes(512)
    (tmp_path / "a.svs").write_bytes(content)
    with open_slide(tmp_path / "a.svs") as slide, pytest.raises(TileReadError, match="column 4, row 5"):
        slide.read(960, 1200, 240, 240)


def test_a_tile_without_data_is_an_error_unless_the_vendor_calls_it_glass(tmp_path: Path) -> None:
    image = np.full((128, 128, 3), 40, np.uint8)
    path = tmp_path / "a.tif"
    options: dict[str, Any] = {
        "photometric": "rgb",
        "tile": (64, 64),
        "compression": "jpeg",
        "metadata": None,
    }
    spacing = (
        '<Attribute Name="DICOM_PIXEL_SPACING" Group="0x28" Element="0x30" PMSVR="IDoubleArray">'
        '"{0}" "{0}"</Attribute>'
    )
    level = '<DataObject ObjectType="PixelDataRepresentation">' + spacing + "</DataObject>"
    described = '<?xml version="1.0"?><DataObject ObjectType="DPUfsImport"><Attribute><Array>' + (
        level.format(0.00025) + level.format(0.0005) + "</Array></Attribute></DataObject>"
    )
    for description, philips in (("", False), (described, True)):
        with tifffile.TiffWriter(path) as tif:
            software = "Philips DP v1.0" if philips else "mclst"
            tif.write(image, description=description, software=software, **options)
            tif.write(np.ascontiguousarray(image[::2, ::2]), subfiletype=1, **options)
        with tifffile.TiffFile(path, mode="r+") as tif:
            tag = tif.pages.first.tags["TileByteCounts"]
            tag.overwrite([tag.value[0], 0, tag.value[2], tag.value[3]])
        with open_slide(path) as slide:
            if philips:
                assert (slide.vendor, slide.mpp, slide.mpp_source) == (
                    "philips",
                    0.25,
                    "Philips pixel spacing",
                )
                assert (slide.read(64, 0, 64, 64) == 255).all()
            else:
                with pytest.raises(TileReadError, match="no data"):
                    slide.read(64, 0, 64, 64)
            assert (slide.read(0, 0, 64, 64) == 40).all()


@pytest.mark.parametrize("layout_name", ["tiled deflate", "tiled jpeg", "lzw strips", "planar tiles"])
@settings(quick, max_examples=80)
@given(data=st.data())
def test_flipped_bytes_never_leave_the_error_tree(
    tmp_path_factory: pytest.TempPathFactory, layout_name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"flip {layout_name}"
    folder.mkdir(exist_ok=True)
    path = folder / f"{layout_name}.tif"
    if not path.exists():
        write_layout(folder, layout_name)
    content = bytearray(path.read_bytes())
    # Half of the flips hit the directories, which stand at the front.
    reach = data.draw(st.sampled_from([600, len(content) - 1]))
    for at in data.draw(st.lists(st.integers(4, reach), min_size=1, max_size=6)):
        content[at] = data.draw(st.integers(0, 255))
    flipped = folder / "flipped.tif"
    flipped.write_bytes(content)
    try:
        with open_slide(flipped) as slide:
            slide.read(0, 0, 200, 200)
    except MclstError as exc:
        assert "\n" not in str(exc)


@settings(quick, max_examples=80)
@given(form=st.sampled_from(["jpeg", "png"]), data=st.data())
def test_flipped_bytes_of_a_picture_never_leave_the_error_tree(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / f"flipped.{form}"
    Image.fromarray(tissue(60, 80)).save(path, format=form)
    content = bytearray(path.read_bytes())
    reach = data.draw(st.sampled_from([60, len(content) - 1]))
    for at in data.draw(st.lists(st.integers(3, reach), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        with open_slide(path) as slide:
            slide.read(0, 0, 50, 50)
    except MclstError as exc:
        assert "\n" not in str(exc)


@settings(quick, max_examples=150)
@given(
    magic=st.sampled_from(
        [b"", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"]
    ),
    rest=st.binary(max_size=400),
)
def test_any_bytes_are_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, magic: bytes, rest: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.svs"
    path.write_bytes(magic + rest)
    with pytest.raises(MclstError) as refusal:
        open_slide(path)
    assert "\n" not in str(refusal.value)


def test_a_file_that_shrinks_under_the_reader_is_an_error(tmp_path: Path) -> None:
    path, _ = write_layout(tmp_path, "one plain strip")
    with open_slide(path) as slide:
        os.truncate(path, 1000)
        with pytest.raises(SlideError):
            slide.read(0, 0, 420, 300)


def ome_with_entities(count: int, use: str) -> str:
    """OME-XML with a chain of entities, each naming the one before."""
    chain = "".join(f'<!ENTITY e{i} "&e{i - 1};">' for i in range(1, count))
    return f'<!DOCTYPE OME [<!ENTITY e0 "x">{chain}]><OME {use.format(f"&e{count - 1};")}</OME>'


@pytest.mark.parametrize("use", [">{}", 'a="{}">'])
@pytest.mark.parametrize("count", [2, 200_000])
def test_m5_xml_entities_are_refused_before_they_are_parsed(tmp_path: Path, count: int, use: str) -> None:
    """In a process apart: 200,000 in a chain crash Expat before 2.7."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, tissue(), photometric="rgb", description=ome_with_entities(count, use), metadata=None
    )
    source = (
        "import sys\nfrom mclst.runtime.slide.open import open_slide\n"
        "try: open_slide(sys.argv[1])\nexcept Exception as error: print(repr(error))"
    )
    done = subprocess.run([sys.executable, "-c", source, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SlideError(") and "declares XML entities" in done.stdout


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("kind", [2, 7])  # ASCII, undefined
def test_m5_xml_entities_in_any_encoding(tmp_path: Path, encoding: str, kind: int) -> None:
    """As bytes that tifffile decodes, or leaves as they are."""
    path, text = tmp_path / "a.tif", ome_with_entities(3, ">{}").encode(encoding)
    tifffile.imwrite(
        path, tissue(), photometric="rgb", metadata=None, extratags=[(270, kind, len(text), text, True)]
    )
    with pytest.raises(SlideError, match="declares XML entities"):
        open_slide(path)


@pytest.mark.parametrize("name", ["pipe", "other.tif", "/dev/zero"])
def test_a_slide_opens_no_other_file_that_its_ome_xml_names(tmp_path: Path, name: str) -> None:
    path, other = tmp_path / "a.ome.tif", tmp_path / "other.tif"
    os.mkfifo(tmp_path / "pipe")
    tifffile.imwrite(other, np.zeros((900, 900, 3), np.uint8), photometric="rgb")
    pixels = (
        '<Pixels DimensionOrder="XYCZT" Type="uint8" SizeX="{}" SizeY="{}" SizeC="3" SizeZ="1" SizeT="1">'
    )
    block = f'<TiffData IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:2</UUID></TiffData>'
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        f'<Image ID="Image:0">{pixels.format(900, 900)}<Channel SamplesPerPixel="3"/>{block}'
        "</Pixels></Image></OME>"
    )
    tifffile.imwrite(path, tissue(), photometric="rgb", description=xml, metadata=None)
    with open_slide(path) as slide:
        assert (slide.width_px, slide.height_px) == (420, 300)


@pytest.mark.parametrize("kind", ["is_mmstack", "is_ndtiff"])
def test_stacks_of_files_that_name_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "a_MMStack.tif"
    tifffile.imwrite(path, tissue(), photometric="rgb")
    monkeypatch.setattr(tifffile.TiffFile, kind, True)
    monkeypatch.delattr(tifffile.TiffFile, "series")
    with pytest.raises(SlideError, match="part of a Micro-Manager stack"):
        open_slide(path)


def test_m5_xml_entities_beyond_the_first_directory_are_never_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        tif.write(tissue(), photometric="rgb", metadata=None, description="<OME></OME>")
        tif.write(
            tissue(150, 210), photometric="rgb", metadata=None, description=ome_with_entities(200_000, ">{}")
        )
    with open_slide(path) as slide:
        assert slide.width_px == 420
