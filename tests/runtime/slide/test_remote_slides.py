"""Slides at a server: the pixels of the local file, little more bytes than the tiles need, lies refused."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp  # noqa: F401 - without it there is nothing to test
import fsspec
import numpy as np
import pytest
import tifffile
from held_port import HeldPort
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick
from ome_zarr_slides import write_by_zarr
from PIL import Image
from range_server import Behavior, RangeServer
from synthetic_slides import LAYOUTS, tissue, write_layout

from mclst.runtime.errors import MclstError, ResourceError, SlideError
from mclst.runtime.slide.base import Slide, TileReadError
from mclst.runtime.slide.open import open_slide
from mclst.runtime.storage import http, remote
from mclst.runtime.storage.remote_file import HEAD_BYTES, RANGE_BYTES, WASTE, _Pieces, join_ranges
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.sections.location import RemoteLocation, slide_location

SIDE, TILE = 1792, 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """slide.tif: 1792 px of JPEG tiles and a level of a quarter; slide.png; slide.zarr with shards."""
    folder = tmp_path_factory.mktemp("remote")
    image = tissue(SIDE, SIDE)
    with tifffile.TiffWriter(folder / "slide.tif") as tif:
        for level in (image, image[::4, ::4]):
            tif.write(
                np.ascontiguousarray(level), tile=(TILE, TILE), compression="jpeg", photometric="rgb",
                compressionargs={"level": 95}, subfiletype=int(level is not image), metadata=None,
                resolution=(20000, 20000), resolutionunit="CENTIMETER",
            )  # fmt: skip
    with tifffile.TiffWriter(folder / "flat.tif") as tif:
        tif.write(image, tile=(TILE, TILE), compression="jpeg", photometric="rgb", metadata=None)
    Image.fromarray(image[:300, :400]).save(folder / "slide.png")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without a pause; a server that is slow, as the machine may be, is waited for."""
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)
    for name in ("CONNECT_S", "SILENCE_S"):
        monkeypatch.setattr(http, name, 600.0)


def scattered_tiles(slide: Slide, n: int = 60) -> tuple[Tiles, dict[int, Any]]:
    """Tiles of 224 px in the slide's upper left half, and their pixels by row."""
    rng = np.random.default_rng(5)
    xy = rng.uniform((150, 150), (SIDE * 0.7, SIDE * 0.5), (n, 2))
    tiles = Tiles(slide, xy, TileShape(224), batch_size=16, workers=4)
    return tiles, {
        row: tile.copy() for batch in tiles for row, tile in zip(batch.rows, batch.tiles, strict=True)
    }


def wanted_bytes(path: Path, tiles: Tiles) -> int:
    """Bytes of level 0's TIFF tiles under these squares, by tifffile."""
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        across = -(-page.imagewidth // TILE)
        keys = {
            row * across + column
            for x, y in tiles._corners.tolist()
            for row in range(y // TILE, (y + 223) // TILE + 1)
            for column in range(x // TILE, (x + 223) // TILE + 1)
        }
        return sum(page.databytecounts[key] for key in keys)


def test_tiles_equal_the_local_ones_for_little_more_than_their_bytes(
    folder: Path, server: RangeServer
) -> None:
    with open_slide(folder / "slide.tif") as local:
        tiles, expected = scattered_tiles(local)
        needed = wanted_bytes(folder / "slide.tif", tiles)
    with open_slide(server.url("slide.tif")) as slide:
        assert (slide.reader, slide.mpp, len(slide.levels)) == ("tifffile", 0.5, 2)
        _, pixels = scattered_tiles(slide)
        assert slide.remote is not None and slide.remote.bytes_read == server.sent
        slide.remote.check_unchanged()
    assert pixels.keys() == expected.keys()
    for row, tile in expected.items():
        np.testing.assert_array_equal(pixels[row], tile)
    assert needed < server.sent <= 1.3 * needed
    assert needed < 0.6 * (folder / "slide.tif").stat().st_size
    # Neighboring tiles are asked for together.
    assert len(server.requests) < 40


def test_dense_tiles_after_scattered_ones_are_fetched_once(folder: Path, server: RangeServer) -> None:
    """Ranges of the first lie within those of the second, which must be found all the same."""
    dense = np.stack(np.meshgrid(np.arange(40, SIDE, 80), np.arange(40, SIDE, 80)), axis=-1).reshape(-1, 2)
    with open_slide(server.url("flat.tif")) as slide:
        scattered_tiles(slide, n=6)
        for _ in range(2):
            for _batch in Tiles(slide, dense.astype(np.float64), TileShape(64), batch_size=4, workers=2):
                pass
    assert server.sent <= 1.3 * (folder / "flat.tif").stat().st_size
    assert len(server.requests) < 30


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=12), st.integers(0, 60))
def test_a_piece_that_holds_a_range_is_found_among_overlapping_ones(
    pieces: list[tuple[int, int]], first: int
) -> None:
    known = _Pieces()
    for start, length in pieces:
        known.add((start, start + length))
    for length in (1, 7):
        holding = [(s, s + n) for s, n in pieces if s <= first and s + n >= first + length]
        piece = known.covering((first, first + length))
        assert piece in holding if holding else piece is None


def test_any_rectangle_and_the_thumbnail_equal_the_local_ones(folder: Path, server: RangeServer) -> None:
    with open_slide(folder / "slide.tif") as local, open_slide(server.url("slide.tif")) as slide:
        for box in ((0, 0, 700, 300), (-20, 1600, 400, 400), (1000, 1000, 1, 1)):
            np.testing.assert_array_equal(slide.read(*box), local.read(*box))
            np.testing.assert_array_equal(slide.read(*box, level=1), local.read(*box, level=1))
        np.testing.assert_array_equal(slide.thumbnail(400)[0], local.thumbnail(400)[0])
        with ThreadPoolExecutor(8) as pool:
            boxes = [(x, x, 300, 300) for x in range(0, 1400, 100)]
            for box, pixels in zip(boxes, pool.map(lambda box: slide.read(*box), boxes), strict=True):
                np.testing.assert_array_equal(pixels, local.read(*box))


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RangeServer]:
    """Every layout and codec of a TIFF."""
    with RangeServer(tmp_path_factory.mktemp("layouts")) as server:
        yield server


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_as_from_the_local_file(layouts: RangeServer, layout: str) -> None:
    path, levels = write_layout(layouts.folder, layout)
    with open_slide(layouts.url(quote(path.name))) as slide:
        assert len(slide.levels) == len(levels)
        for number, image in enumerate(levels):
            height, width = image.shape[:2]
            np.testing.assert_array_equal(slide.read(0, 0, width, height, level=number), image)


def test_directories_of_thousands_of_tiles_are_read(layouts: RangeServer) -> None:
    """tifffile reads long tags straight into arrays."""
    image = tissue(800, 800)
    tifffile.imwrite(layouts.folder / "many.tif", image, tile=(16, 16), compression="zlib", metadata=None)
    with open_slide(layouts.url("many.tif")) as slide:
        np.testing.assert_array_equal(slide.read(300, 300, 100, 100), image[300:400, 300:400])


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_ome_zarr_is_read_chunk_by_chunk_each_once(layouts: RangeServer, zarr_format: int) -> None:
    path = layouts.folder / f"{zarr_format}.zarr"
    write_by_zarr(path, zarr_format, levels=2, chunks=(1, 64, 64))
    xy = np.random.default_rng(4).uniform((40, 40), (380, 150), (40, 2))
    with open_slide(path) as local:
        expected = next(iter(Tiles(local, xy, TileShape(60), batch_size=64, workers=1))).tiles.copy()
    before, sent = len(layouts.requests), layouts.sent
    with open_slide(layouts.url(path.name)) as slide:
        assert (slide.mpp, slide.vendor) == (0.5, f"ome-zarr 0.{zarr_format + 2}")
        (batch,) = Tiles(slide, xy, TileShape(60), batch_size=64, workers=4)
        np.testing.assert_array_equal(batch.tiles, expected)
        assert slide.remote is not None
        slide.remote.check_unchanged()
    asked = [name for name, _ in layouts.requests[before:]]
    chunks = [name for name in asked if not name.endswith(("zarr.json", ".zattrs", ".zarray", ".zgroup"))]
    assert len(set(chunks)) == len(chunks) <= 3 * 7 * 4
    needed = sum((layouts.folder / name[1:]).stat().st_size for name in chunks)
    assert needed < layouts.sent - sent <= 1.3 * needed


@pytest.mark.parametrize("fault", ["cut", "endless", "redirect"])
def test_a_lying_server_of_an_ome_zarr_is_told(layouts: RangeServer, fault: str) -> None:
    write_by_zarr(layouts.folder / "lied.zarr", 2, chunks=(3, 64, 64))
    try:
        with open_slide(layouts.url("lied.zarr")) as slide:
            layouts.behavior = Behavior.lying(fault)
            # An endless chunk costs its tile; what says nothing of the chunk ends the run.
            kind = {"cut": ResourceError, "endless": TileReadError, "redirect": SlideError}[fault]
            with pytest.raises(kind) as caught:
                slide.read(0, 0, 10, 10)
            assert type(caught.value) is kind and "\n" not in str(caught.value)
    finally:
        layouts.behavior = Behavior()


def test_real_slides_read_as_from_the_local_file(slides: Path) -> None:
    with RangeServer(slides) as server:
        for name in ("CMU-1-Small-Region.svs", "test3-DAPI-2-_387_.ndpi", "kidney-48-5.tif"):
            with open_slide(slides / name) as local, open_slide(server.url(name)) as slide:
                assert (slide.levels, slide.mpp, slide.icc) == (local.levels, local.mpp, local.icc)
                for level in range(len(slide.levels)):
                    box = (100, 150, 300, 200)
                    np.testing.assert_array_equal(
                        slide.read(*box, level=level), local.read(*box, level=level)
                    )


def test_a_picture_is_read_whole(folder: Path, server: RangeServer) -> None:
    with open_slide(server.url("slide.png")) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 400, 300), Image.open(folder / "slide.png"))
        assert str(slide.path) == server.url("slide.png")


@pytest.mark.parametrize("fault", ["cut", "busy", "silent"])
def test_what_fails_once_is_asked_again(folder: Path, server: RangeServer, fault: str) -> None:
    server.behavior = Behavior.lying(fault, 2, after=1)
    with open_slide(server.url("slide.tif")) as slide, open_slide(folder / "slide.tif") as local:
        np.testing.assert_array_equal(slide.read(0, 0, 600, 600), local.read(0, 0, 600, 600))


LIES: dict[str, tuple[type[MclstError], str]] = {
    "cut": (ResourceError, "tried 4 times (the connection was cut)"),
    "busy": (ResourceError, "tried 4 times (status 503)"),
    "silent": (ResourceError, "tried 4 times (the connection was cut)"),
    "whole": (SlideError, "ignores ranges"),
    "redirect": (SlideError, "sent elsewhere by its server (status 302 to http://elsewhere.example)"),
    "endless": (SlideError, "more than the"),
    "compressed": (SlideError, "sent compressed"),
    "other_range": (SlideError, "which nobody asked for"),
    "other_etag": (SlideError, "changed while it was being read (another ETag)"),
    "no_size": (SlideError, "without its size"),
}


@pytest.mark.parametrize(
    ("fault", "after"),
    # The first ETag is what later ones are compared with.
    [(fault, after) for fault in LIES for after in (0, 2) if after or fault != "other_etag"],
)
def test_a_lying_server_is_told_and_no_pixels_come(server: RangeServer, fault: str, after: int) -> None:
    kind, words = LIES[fault]
    server.behavior = Behavior.lying(fault, after=after)
    with pytest.raises(kind) as caught, open_slide(server.url("slide.tif")) as slide:
        slide.read(0, 0, SIDE, SIDE)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert "secret" not in str(caught.value) and not isinstance(caught.value, TileReadError)


@pytest.mark.parametrize("tell_etag", [True, False])
def test_a_changed_object_is_told(folder: Path, tmp_path: Path, tell_etag: bool) -> None:
    path = Path(shutil.copy(folder / "slide.tif", tmp_path / "slide.tif"))
    with RangeServer(tmp_path, Behavior(tell_etag=tell_etag)) as server:
        with open_slide(server.url("slide.tif")) as slide:
            slide.read(0, 0, 100, 100)
            path.write_bytes(path.read_bytes() + b"more")
            with pytest.raises(SlideError, match=r"changed while it was being read \(another (ETag|size)\)"):
                slide.read(1000, 1000, 100, 100)
            assert slide.remote is not None
            with pytest.raises(SlideError, match="changed"):
                slide.remote.check_unchanged()
        path.unlink()
        with pytest.raises(SlideError, match="does not exist"):
            open_slide(server.url("slide.tif"))


def test_other_bytes_at_the_same_place_are_told_without_any_header(server: RangeServer) -> None:
    with open_slide(server.url("slide.tif")) as slide:
        assert slide.remote is not None
        slide.remote.record("", 10, b"some")
        with pytest.raises(SlideError, match="other bytes at the same place"):
            slide.remote.record("", 10, b"same")


def test_the_digest_is_of_what_was_read_and_not_of_how(server: RangeServer) -> None:
    digests = []
    for workers in (1, 4):
        with open_slide(server.url("slide.tif")) as slide:
            xy = np.random.default_rng(1).uniform(200, 1500, (30, 2))
            for _ in Tiles(slide, xy, TileShape(224), batch_size=4, workers=workers):
                pass
            assert slide.remote is not None
            digests.append(slide.remote.digest())
    assert digests[0] == digests[1] and len(digests[0]) == 64


def test_the_digest_is_what_the_documentation_says(folder: Path, server: RangeServer) -> None:
    data = (folder / "slide.png").read_bytes()
    with open_slide(server.url("slide.png")) as slide:
        assert slide.remote is not None
        digest = slide.remote.digest()
    lines = "".join(
        f"\0{0}\0{size}\0{hashlib.sha256(data[:size]).hexdigest()}\n" for size in (HEAD_BYTES, len(data))
    )
    assert len(data) < RANGE_BYTES and digest == hashlib.sha256(lines.encode()).hexdigest()


def test_headers_of_fsspecs_configuration_are_sent(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "http", {"headers": {"Authorization": "Bearer 5ec2e7"}})
    with open_slide(server.url("slide.tif")) as slide:
        slide.read(0, 0, 10, 10)
    assert set(server.authorizations) == {"Bearer 5ec2e7"}


@pytest.mark.parametrize(
    ("status", "words"), [(401, "refused by its server"), (403, "credentials"), (451, "status 451")]
)
def test_a_refusal_is_a_sentence(server: RangeServer, status: int, words: str) -> None:
    server.behavior = Behavior(status=status)
    with pytest.raises(SlideError, match=words):
        open_slide(server.url("slide.tif"))


@pytest.mark.parametrize("name", ["slide.tif", "hung.zarr"])
def test_a_stop_does_not_wait_for_a_silent_server(
    folder: Path, server: RangeServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "SILENCE_S", 3600.0)
    if not (folder / name).exists():
        write_by_zarr(folder / name, 3, chunks=(3, 64, 64))
    with open_slide(server.url(name)) as slide:
        server.behavior = Behavior(hang=1 << 30)
        xy = np.full((4, 2), 100.0)
        stream = iter(Tiles(slide, xy, TileShape(64), batch_size=2, workers=2))
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(next, stream)
            server.hanging.wait()
            with slide.stopping(), pytest.raises(SlideError, match="no longer read, since the run stops"):
                first.result()
        server.behavior = Behavior()
        slide.read(0, 0, 10, 10)  # what is read afterwards is not affected


def test_no_server_is_a_missing_resource(folder: Path) -> None:
    port = HeldPort()  # at which nobody listens, nor another process may
    with pytest.raises(ResourceError, match=r"tried 4 times \(no connection: Connect"):
        open_slide(f"http://127.0.0.1:{port.number}/slide.tif")
    port.close()


def test_secrets_of_an_address_are_used_and_never_shown(server: RangeServer) -> None:
    url = server.url("slide.tif?X-Amz-Signature=5ec2e7#part", userinfo="me:pa55word@")
    with open_slide(url) as slide:
        assert server.requests[0][0] == "/slide.tif?X-Amz-Signature=5ec2e7"
        assert server.authorizations[0].startswith("Basic ")
        assert slide.path.name == "slide.tif" and slide.path.stem == "slide"
        shown = f"{slide.path} {slide.path!r} {slide!r} {slide._repr_html_()}"
        assert slide.remote is not None
        shown += slide.remote.describe()
        server.behavior = Behavior(status=500)
        with pytest.raises(ResourceError) as caught:
            slide.read(0, 0, 500, 500)
        shown += f"{caught.value!r} {caught.value.__cause__!r}"
    assert "pa55word" not in shown and "5ec2e7" not in shown and "me:" not in shown
    assert pickle.loads(pickle.dumps(slide.path)) == slide.path


@pytest.mark.parametrize(
    ("text", "shown", "name", "is_folder"),
    [
        ("s3://bucket/a/b c.svs", "s3://bucket/a/b c.svs", "b c.svs", False),
        ("S3://bucket/100%25.tif", "s3://bucket/100%25.tif", "100%25.tif", False),
        ("gs://bucket/a.zarr", "gs://bucket/a.zarr", "a.zarr", True),
        ("https://host:8443/d/a%20b.svs?sig=x", "https://host:8443/d/a%20b.svs", "a b.svs", False),
        ("https://host/d/é.svs", "https://host/d/%C3%A9.svs", "é.svs", False),
        ("https://host/d/a.ome.zarr/", "https://host/d/a.ome.zarr/", "a.ome.zarr", True),
        ("https://host/..%2Fpasswd", "https://host/..%2Fpasswd", "..%2Fpasswd", False),
    ],
)
def test_addresses_are_understood(text: str, shown: str, name: str, is_folder: bool) -> None:
    location = slide_location(text)
    assert isinstance(location, RemoteLocation)
    assert (str(location), location.name, location.is_folder) == (shown, name, is_folder)


@pytest.mark.parametrize(
    "text",
    ["ftp://host/a.tif", "https://", "https://host", "s3://bucket/", "https://host:port/a", "https://h/a\nb",
     "http://me:secret@host/a.tif", "https://[::1/a.tif"],
)  # fmt: skip
def test_addresses_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(SlideError) as caught:
        open_slide(text)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


@quick
@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 10**6)), max_size=40))
def test_joined_ranges_hold_all_and_little_else(pairs: list[tuple[int, int]]) -> None:
    wanted = sorted({(first, first + count) for first, count in pairs})
    joined = join_ranges(wanted)
    for first, end in wanted:
        assert any(start <= first and end <= stop for start, stop in joined)
    for start, stop in joined:
        inside = np.zeros(stop - start, bool)
        for first, end in wanted:
            if start <= first and end <= stop:
                inside[first - start : end - start] = True
        assert stop - start <= max(RANGE_BYTES, max(end - first for first, end in wanted))
        assert (~inside).sum() <= WASTE * inside.sum() + 1


def test_openslide_formats_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(1000))
    with RangeServer(tmp_path) as server, pytest.raises(SlideError, match=r"dicom.*download it first"):
        open_slide(server.url("a.dcm"))
    with RangeServer(tmp_path) as server, pytest.raises(SlideError, match="is empty"):
        (tmp_path / "empty.tif").write_bytes(b"")
        open_slide(server.url("empty.tif"))


def test_a_closed_slide_is_not_read(server: RangeServer) -> None:
    slide = open_slide(server.url("slide.tif"))
    slide.close()
    with pytest.raises(SlideError, match="closed"):
        slide.read(0, 0, 10, 10)
