"""OME-Zarr 0.4 and 0.5 as slides: pixels of independent writers; damaged and hostile ones refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profile import quick
from ome_zarr_slides import MPP, edit_json, pyramid, write_by_ome_zarr, write_by_zarr
from synthetic_slides import PAD, cut, tissue
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from mclst.runtime.errors import MclstError, ResourceError, SlideError
from mclst.runtime.run.hashes import SlideHash
from mclst.runtime.slide.base import Slide, TileReadError
from mclst.runtime.slide.open import open_slide
from mclst.runtime.slide.zarr.codecs import crc32c
from mclst.runtime.tiling.tiles import Tiles, TileShape

Change = Callable[[Path], Any]


def assert_same_pixels(slide: Slide, levels: int) -> None:
    rng = np.random.default_rng(3)
    assert len(slide.levels) == levels
    for number, image in enumerate(pyramid(levels)):
        height, width = image.shape[:2]
        assert (slide.levels[number].width_px, slide.levels[number].height_px) == (width, height)
        assert slide.levels[number].downsample == 2**number
        np.testing.assert_array_equal(slide.read(0, 0, width, height, level=number), image)
        for _ in range(4):
            x, y = (int(v) for v in rng.integers(-80, 400, 2))
            box = x, y, *(int(v) for v in rng.integers(1, 150, 2))
            np.testing.assert_array_equal(slide.read(*box, level=number, pad=PAD), cut(image, *box))


@pytest.mark.parametrize(
    ("version", "axes", "chunk"), [("0.4", "cyx", 64), ("0.4", "tczyx", 96), ("0.5", "tczyx", 50)]
)
def test_every_level_has_the_pixels_that_ome_zarr_py_wrote(
    tmp_path: Path, version: str, axes: str, chunk: int
) -> None:
    write_by_ome_zarr(tmp_path / "a.zarr", version, axes, chunk)
    with open_slide(tmp_path / "a.zarr") as slide:
        assert (slide.reader, slide.vendor) == ("zarr", f"ome-zarr {version}")
        assert slide.mpp == MPP and slide.mpp_source == "OME-Zarr scale"
        assert slide.levels[0].segment_px == (chunk, chunk)
        assert_same_pixels(slide, 3)


def shards(*codecs: Any, **options: Any) -> dict[str, Any]:
    inner = ShardingCodec(chunk_shape=(3, 32, 32), codecs=[zarr.codecs.BytesCodec(), *codecs], **options)
    return {"chunks": (3, 128, 96), "serializer": inner, "compressors": None}


LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (2, {"chunks": (3, 60, 70), "compressors": None}),
    "by channel": (2, {"chunks": (1, 128, 64)}),
    "two channels": (2, {"chunks": (2, 300, 64), "compressors": None}),
    "Fortran order": (2, {"chunks": (3, 60, 70), "compressors": None, "order": "F"}),
    "nested": (2, {"chunks": (3, 60, 70), "chunk_key_encoding": {"name": "v2", "separator": "/"}}),
    "v3 zstd": (3, {"chunks": (3, 60, 70), "compressors": ZstdCodec()}),
    "v3 gzip": (3, {"chunks": (3, 60, 70), "compressors": GzipCodec()}),
    "v3 blosc": (3, {"chunks": (3, 60, 70), "compressors": BloscCodec(cname="lz4")}),
    "v3 two codecs": (3, {"chunks": (3, 60, 70), "compressors": (BloscCodec(cname="zstd"), Crc32cCodec())}),
    "v3 dots": (3, {"chunks": (3, 60, 70), "chunk_key_encoding": {"name": "default", "separator": "."}}),
    "v3 old keys": (3, {"chunks": (3, 60, 70), "chunk_key_encoding": {"name": "v2", "separator": "."}}),
    "v3 transposed": (
        3,
        {
            "chunks": (3, 60, 70),
            "filters": (TransposeCodec(order=(2, 0, 1)), TransposeCodec(order=(1, 0, 2))),
        },
    ),
    "shards": (3, shards(ZstdCodec())),
    "shards by index first": (3, shards(BloscCodec(), index_location="start")),
    "shards without a checksum": (3, shards(index_codecs=[zarr.codecs.BytesCodec()])),
    "shards of checked chunks": (3, shards(Crc32cCodec())),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_zarr_reads_as_it_was_written(tmp_path: Path, name: str) -> None:
    zarr_format, options = LAYOUTS[name]
    write_by_zarr(tmp_path / "a.zarr", zarr_format, levels=2, **options)
    with open_slide(tmp_path / "a.zarr") as slide:
        assert_same_pixels(slide, 2)


@pytest.mark.parametrize("codec", ["Blosc", "Zlib", "GZip", "Zstd", "LZ4", "BZ2", "LZMA"])
def test_every_compressor_of_format_2_is_undone(tmp_path: Path, codec: str) -> None:
    import numcodecs

    write_by_zarr(tmp_path / "a.zarr", 2, chunks=(3, 64, 64), compressors=getattr(numcodecs, codec)())
    with open_slide(tmp_path / "a.zarr") as slide:
        assert_same_pixels(slide, 1)


def test_tiles_equal_those_of_the_same_picture_as_tiff(tmp_path: Path) -> None:
    write_by_zarr(tmp_path / "slide.zarr", 3, levels=3, chunks=(3, 64, 64))
    with tifffile.TiffWriter(tmp_path / "slide.tif") as tif:
        for image in pyramid():
            tif.write(image, tile=(64, 64), compression="zlib", photometric="rgb", metadata=None)
    xy = np.random.default_rng(6).uniform((-20, -20), (440, 320), (80, 2))
    for shape in (TileShape(50), TileShape(32, mpp=1.4, pad=PAD)):
        read = []
        for name in ("slide.tif", "slide.zarr"):
            with open_slide(tmp_path / name) as slide:
                tiles = Tiles(slide, xy, shape, batch_size=80, workers=3, slide_mpp=MPP)
                read.append(next(iter(tiles)).tiles.copy())
        np.testing.assert_array_equal(read[0], read[1])


@pytest.mark.parametrize("sharded", [False, True])
def test_chunks_that_are_missing_have_the_fill_value(tmp_path: Path, sharded: bool) -> None:
    layout = shards(ZstdCodec()) if sharded else {"chunks": (3, 32, 32)}
    write_by_zarr(tmp_path / "a.zarr", 3, fill_value=243, **layout)
    # zarr does not store a chunk that is all fill.
    stored: Any = zarr.open_group(tmp_path / "a.zarr")["0"]
    stored[:, 64:96, 32:64] = 243
    expected = tissue()
    expected[64:96, 32:64] = 243
    with open_slide(tmp_path / "a.zarr") as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 420, 300), expected)
    if not sharded:
        assert not (tmp_path / "a.zarr/0/c/0/2/1").exists()


REFUSED: dict[str, tuple[Change, str]] = {
    "16-bit": (lambda folder: edit_json(folder / "0/zarr.json", data_type="uint16"), "'uint16'.*8-bit"),
    "one channel": (lambda folder: edit_json(folder / "0/zarr.json", shape__0=1), "1 channels"),
    "planes": (
        lambda folder: edit_json(
            folder / "zarr.json", attributes__ome__multiscales__0__axes__0={"name": "z", "type": "space"}
        ),
        "without channels",
    ),
    "an earlier version": (
        lambda folder: edit_json(folder / "zarr.json", attributes__ome__multiscales__0__axes=["c", "y", "x"]),
        "before 0.4",
    ),
    "a later version": (
        lambda folder: edit_json(folder / "zarr.json", attributes__ome__version="0.9"),
        "OME-Zarr 0.9",
    ),
    "a plate": (lambda folder: edit_json(folder / "zarr.json", attributes__ome__plate={}), "plate"),
    "no image": (lambda folder: edit_json(folder / "zarr.json", attributes={}), "without an OME image"),
    "colors of fluorescence": (
        lambda folder: edit_json(
            folder / "zarr.json",
            attributes__ome__omero={
                "channels": [{"label": "DAPI", "color": c} for c in ("0000FF", "00FF00", "FF0000")]
            },
        ),
        "DAPI, DAPI, DAPI",
    ),
    "an array elsewhere": (
        lambda folder: edit_json(
            folder / "zarr.json", attributes__ome__multiscales__0__datasets__0__path="../../b"
        ),
        "outside",
    ),
    "no array": (lambda folder: shutil.rmtree(folder / "0"), "lacks its array '0'"),
    "enormous chunks": (
        lambda folder: edit_json(
            folder / "0/zarr.json", chunk_grid__configuration__chunk_shape=[3, 2**20, 2**20]
        ),
        "smaller chunks",
    ),
    "chunks of no length": (
        lambda folder: edit_json(folder / "0/zarr.json", chunk_grid__configuration__chunk_shape=[3, 0, 64]),
        "declares a shape or chunks",
    ),
    "a length of 10^30": (
        lambda folder: edit_json(folder / "0/zarr.json", shape__1=10**30),
        "declares a shape",
    ),
    "an unknown codec": (
        lambda folder: edit_json(folder / "0/zarr.json", codecs__1={"name": "sz3"}),
        "'sz3'",
    ),
    "no codec to bytes": (
        lambda folder: edit_json(folder / "0/zarr.json", codecs=[{"name": "zstd"}]),
        "no array's metadata",
    ),
    "shards within shards": (
        lambda folder: edit_json(
            folder / "0/zarr.json",
            codecs=[
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [3, 64, 64],
                        "codecs": [{"name": "sharding_indexed", "configuration": {}}],
                        "index_codecs": [{"name": "bytes"}],
                    },
                }
            ],
        ),
        "shards within shards",
    ),
    "no JSON": (lambda folder: (folder / "zarr.json").write_bytes(b"{" * 10**6), "no JSON"),
    "JSON nested deep": (lambda folder: (folder / "zarr.json").write_bytes(b"[" * 10**6), "no JSON"),
    "a list": (lambda folder: (folder / "zarr.json").write_text("[]"), "no JSON object"),
    "axes in a text": (
        lambda folder: edit_json(folder / "zarr.json", attributes__ome__multiscales__0__datasets="all"),
        "OME metadata",
    ),
    "a scale of NaN": (
        lambda folder: edit_json(
            folder / "zarr.json",
            attributes__ome__multiscales__0__datasets__0__coordinateTransformations=[
                {"type": "scale", "scale": [1, float("nan"), 1]}
            ],
        ),
        "OME metadata",
    ),
}


@pytest.fixture(scope="module")
def plain_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zarr") / "a.zarr"
    write_by_zarr(folder, 3, chunks=(3, 64, 64), compressors=ZstdCodec())
    return folder


@pytest.fixture
def copied(plain_slide: Path, tmp_path: Path) -> Path:
    """A slide to spoil; Zarr 3, chunks of 64 px by zstd."""
    return Path(shutil.copytree(plain_slide, tmp_path / "a.zarr"))


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_rgb_slide_is_refused_in_a_sentence(copied: Path, case: str) -> None:
    change, words = REFUSED[case]
    change(copied)
    with pytest.raises((SlideError, ResourceError), match=words) as caught:
        open_slide(copied)
    assert str(caught.value).startswith(str(copied)) and "\n" not in str(caught.value)


@settings(quick, max_examples=25)
@given(st.data())
def test_metadata_changed_at_random_is_read_or_refused(plain_slide: Path, data: st.DataObject) -> None:
    """Any field becomes anything: an error of ours, or a slide whose pixels can be asked for."""
    name = data.draw(st.sampled_from(["zarr.json", "0/zarr.json"]))
    original = (plain_slide / name).read_text()
    paths = list(_paths(json.loads(original)))
    value = data.draw(
        st.one_of(
            st.none(), st.integers(-1, 2**70), st.text(max_size=5), st.lists(st.integers(-1, 3), max_size=4),
            st.just({}), st.floats(), st.booleans(),
        )
    )  # fmt: skip
    try:
        edit_json(plain_slide / name, **{"__".join(map(str, data.draw(st.sampled_from(paths)))): value})
        try:
            with open_slide(plain_slide) as slide:
                slide.read(60, 60, 10, 10)
        except MclstError as error:
            assert "\n" not in str(error)
    finally:
        (plain_slide / name).write_text(original)


def _paths(value: object, path: tuple[object, ...] = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*path, key)
        yield from _paths(below, (*path, key))


def bomb(size: int) -> bytes:
    import numcodecs

    return bytes(numcodecs.Zstd().encode(bytes(size)))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "zstd|unpacks|decompress"),
        (b"no zstd at all", "."),
        (bomb(64 * 64 * 3 - 1), "unpacks to 12,287 bytes"),
        (bomb(1 << 28), "too small"),
        (bytes(200_000), "more than"),
    ],
    ids=["empty", "other bytes", "a byte short", "a bomb", "a long file"],
)
def test_a_damaged_chunk_costs_its_tile_alone(copied: Path, content: bytes, why: str) -> None:
    (copied / "0/c/0/1/1").write_bytes(content)
    with open_slide(copied) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 64, 64), tissue()[:64, :64])
        with pytest.raises(TileReadError, match=f"(?i)column 1, row 1.*{why}"):
            slide.read(0, 0, 65, 65)


@pytest.mark.parametrize("part", ["index", "chunk", "length"])
def test_a_damaged_shard_is_noticed(tmp_path: Path, part: str) -> None:
    write_by_zarr(tmp_path / "a.zarr", 3, **shards(Crc32cCodec()))
    path = tmp_path / "a.zarr/0/c/0/0/0"
    data = bytearray(path.read_bytes())
    data[{"index": -30, "chunk": 10, "length": -1}[part]] ^= 1
    path.write_bytes(data if part != "length" else data[:100])
    with open_slide(tmp_path / "a.zarr") as slide, pytest.raises(TileReadError, match=r"checksum|shorter"):
        slide.read(0, 0, 32, 32)


@pytest.mark.parametrize("kind", ["a link", "a folder that is a link", "a pipe"])
def test_nothing_outside_the_folder_is_read(copied: Path, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    shutil.copytree(copied / "0/c/0/0", secret)
    chunk = copied / "0/c/0/0/0"
    if kind == "a folder that is a link":
        shutil.rmtree(chunk.parent)
        chunk.parent.symlink_to(secret)
    else:
        chunk.unlink()
        chunk.symlink_to(secret / "0") if kind == "a link" else os.mkfifo(chunk)
    with open_slide(copied) as slide, pytest.raises(SlideError, match=r"0/c/0/0/0 (is|leads)") as caught:
        slide.read(0, 0, 10, 10)
    assert not isinstance(caught.value, TileReadError)


def test_a_changed_chunk_changes_the_slides_hash_and_is_told(copied: Path) -> None:
    with SlideHash(copied) as before:
        first = before.result()
    with SlideHash(copied) as same:
        assert same.result() == first
        (copied / "0/c/0/0/0").write_bytes(b"other")
        with pytest.raises(SlideError, match="changed while it was being read"):
            same.check_unchanged()
    with SlideHash(copied) as after:
        assert after.result() != first
    os.mkfifo(copied / "0/c/pipe")  # never read
    with SlideHash(copied) as piped:
        assert piped.result() != first


def test_the_first_image_of_bioformats2raw_is_the_slide(tmp_path: Path) -> None:
    """Its folder holds numbered images: https://ngff.openmicroscopy.org/0.4/#bf2raw-layout."""
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    write_by_zarr(tmp_path / "a.zarr/0", 2, chunks=(1, 64, 64))
    write_by_zarr(tmp_path / "a.zarr/1", 2, levels=2, chunks=(1, 64, 64))
    with open_slide(tmp_path / "a.zarr") as slide:
        assert_same_pixels(slide, 1)


def test_crops_among_the_levels_are_left_out(tmp_path: Path) -> None:
    write_by_zarr(tmp_path / "a.zarr", 3, levels=3, chunks=(3, 64, 64))
    steps = "attributes__ome__multiscales__0__datasets__{}__coordinateTransformations"
    half_a_pixel, far = (
        [{"type": "scale", "scale": [1, 1, 1]}, {"type": "translation", "translation": [0, at, at]}]
        for at in (0.25, 40.0)
    )
    edit_json(tmp_path / "a.zarr/zarr.json", **{steps.format(1): half_a_pixel, steps.format(2): far})
    with open_slide(tmp_path / "a.zarr") as slide:
        assert [level.downsample for level in slide.levels] == [1, 2]


@pytest.mark.parametrize(
    ("unit", "step", "mpp"),
    [
        ("nanometer", 250, 0.25),
        ("millimeter", 0.00025, 0.25),
        ("micrometer", 12, None),
        ("micrometer", -0.5, None),
        ("pixel", 0.5, None),
        (None, 0.5, None),
    ],
)
def test_a_scale_counts_by_its_unit(copied: Path, unit: str | None, step: float, mpp: float | None) -> None:
    image = "attributes__ome__multiscales__0__"
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": unit} for n in "yx")]
    steps = [{"type": "scale", "scale": [1, step, step]}]
    edit_json(
        copied / "zarr.json",
        **{f"{image}axes": axes, f"{image}datasets__0__coordinateTransformations": steps},
    )
    with open_slide(copied) as slide:
        assert slide.mpp == (None if mpp is None else pytest.approx(mpp))


def test_a_folder_that_is_no_zarr_and_another_reader_are_refused(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SlideError, match="is a folder and no OME-Zarr"):
        open_slide(tmp_path / "empty")
    tifffile.imwrite(tmp_path / "a.tif", tissue())
    for path, reader in ((copied, "openslide"), (copied, "tifffile"), (tmp_path / "a.tif", "zarr")):
        with pytest.raises(SlideError, match="--reader auto"):
            open_slide(path, reader=reader)


def test_the_checksum_is_crc_32c() -> None:
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(b"123456789") == 0xE3069283
