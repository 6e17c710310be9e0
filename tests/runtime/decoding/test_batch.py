"""Segments decoded many at once: the pixels, the errors and the memory of segments decoded one by one."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from synthetic_slides import tissue

from mclst.runtime import open_slide
from mclst.runtime.decoding import batch, library
from mclst.runtime.errors import SlideError
from mclst.runtime.slide import segmented_slide, tiff_level
from mclst.runtime.slide.base import TileReadError
from mclst.runtime.tiling.tiles import Tiles, TileShape

ROOT = Path(__file__).resolve().parents[3]
batched = pytest.mark.skipif(
    not batch.can_decode(), reason="the batch decoder is not compiled here, or there is no libjpeg-turbo"
)
WIDTH, HEIGHT, SEGMENT = 300, 210, 64
PAD = (9, 8, 7)


def write(path: Path, *, size: tuple[int, int] = (WIDTH, HEIGHT), how: dict[str, Any] | None = None) -> Path:
    """A TIFF of JPEG tiles of made-up tissue; how: options of Pillow's writer."""
    width, height = size
    how = {"quality": 85, "subsampling": 2} | (how or {})
    gray = how.pop("gray", False)
    columns, rows = -(-width // SEGMENT), -(-height // SEGMENT)
    pixels = tissue(rows * SEGMENT, columns * SEGMENT)
    streams = []
    for row in range(rows):
        for column in range(columns):
            part = pixels[row * SEGMENT : (row + 1) * SEGMENT, column * SEGMENT : (column + 1) * SEGMENT]
            image, stream = Image.fromarray(part), io.BytesIO()
            (image.convert("L") if gray else image).save(stream, "JPEG", **how)
            streams.append(stream.getvalue())
    subsampling = {0: (1, 1), 1: (2, 1), 2: (2, 2)}[how.get("subsampling", 2)]
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            iter(streams),
            shape=(height, width) if gray else (height, width, 3),
            dtype=np.uint8,
            tile=(SEGMENT, SEGMENT),
            photometric="minisblack" if gray else "ycbcr",
            subsampling=None if gray else subsampling,
            compression="jpeg",
        )
    return path


def corners(n: int = 40, side: int = 50) -> NDArray[np.int64]:
    """Corners inside, across every edge, and outside."""
    rng = np.random.default_rng(1)
    inside = rng.integers((-side, -side), (WIDTH + 10, HEIGHT + 10), (n, 2))
    return np.concatenate([inside, [[-side - 5, 3], [WIDTH, HEIGHT], [0, 0]]]).astype(np.int64)


def squares_of(path: Path, places: NDArray[np.int64], side: int = 50, level: int = 0) -> tuple[Any, Any, int]:
    """(pixels, failures, segments decoded) of squares; the header is known from a segment before."""
    with open_slide(path) as slide:
        assert isinstance(slide, segmented_slide.SegmentedSlide)
        slide.read(0, 0, 8, 8)
        squares = np.full((len(places), side, side, 3), 111, np.uint8)
        failed = slide.read_squares(squares, places, level=level, pad=PAD)
        return squares, failed, slide.cache.decoded


def one_by_one(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> tuple[Any, Any, int]:
    with monkeypatch.context() as patch:
        patch.setattr(tiff_level, "can_decode", lambda: False)
        return squares_of(*arguments)


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many segments each batch has."""
    seen: list[int] = []
    real = tiff_level.decode_segments  # type: ignore[attr-defined]

    def counted(*arguments: Any) -> Any:
        seen.append(len(arguments[3]))
        return real(*arguments)

    monkeypatch.setattr(tiff_level, "decode_segments", counted)
    return seen


@batched
@pytest.mark.parametrize(
    "how",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2, "quality": 30},
        {"progressive": True},
        {"restart_marker_blocks": 2},
        {"optimize": True},
    ],
    ids=str,
)
def test_pixels_are_those_of_segments_decoded_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    path, places = write(tmp_path / "slide.tiff", how=how), corners()
    seen = calls(monkeypatch)
    got, failed, decoded = squares_of(path, places)
    assert sum(seen) == decoded - 1 and len(seen) == 1 and not failed
    alone, _, as_many = one_by_one(monkeypatch, path, places)
    np.testing.assert_array_equal(got, alone)
    assert decoded == as_many
    # An independent decoder, where nothing is padded.
    with tifffile.TiffFile(path) as tiff:
        whole = tiff.pages.first.asarray()
    for square, (x, y) in zip(got, places.tolist(), strict=True):
        if 0 <= x <= WIDTH - 50 and 0 <= y <= HEIGHT - 50:
            np.testing.assert_array_equal(square, whole[y : y + 50, x : x + 50])


@batched
def test_gray_streams_and_those_with_another_header_take_the_usual_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gray = write(tmp_path / "gray.tiff", how={"gray": True})
    seen = calls(monkeypatch)
    np.testing.assert_array_equal(squares_of(gray, corners())[0], one_by_one(monkeypatch, gray, corners())[0])
    assert not seen
    # Huffman tables of their own give every stream another header.
    path = write(tmp_path / "optimized.tiff", how={"optimize": True})
    got, failed, _ = squares_of(path, corners())
    assert seen and not failed
    np.testing.assert_array_equal(got, one_by_one(monkeypatch, path, corners())[0])


@batched
@pytest.mark.parametrize("kind", ["cut off", "noise", "empty", "no JPEG"])
def test_a_damaged_segment_fails_the_squares_on_it_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = write(tmp_path / "slide.tiff")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        offset, count = page.dataoffsets[6], page.databytecounts[6]
    content = bytearray(path.read_bytes())
    damage = {
        "cut off": (count - 200, bytes(200)),
        "noise": (count // 2, np.random.default_rng(0).bytes(150)),
        "empty": (0, bytes(count)),
        "no JPEG": (0, b"GIF89a"),
    }[kind]
    content[offset + damage[0] : offset + damage[0] + len(damage[1])] = damage[1]
    path.write_bytes(content)
    places = corners()
    got, failed, _ = squares_of(path, places)
    alone, failed_alone, _ = one_by_one(monkeypatch, path, places)
    assert failed == failed_alone and 0 < len(failed) < len(places)
    good = np.setdiff1d(np.arange(len(places)), [number for number, _ in failed])
    np.testing.assert_array_equal(got[good], alone[good])


@batched
def test_threads_decode_each_segment_once_and_keep_none(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tiff")
    xy = np.random.default_rng(0).uniform(0, (WIDTH, HEIGHT), (400, 2))
    with open_slide(path) as slide:
        tiles = Tiles(slide, xy, TileShape(40, pad=PAD), batch_size=64, workers=6, group=2)
        expected = np.stack([tiles.read_tile(row) for row in range(400)])
        assert isinstance(slide, segmented_slide.SegmentedSlide)
        before = slide.cache.decoded
        slide.cache.clear()
        for _ in range(3):
            got = np.zeros_like(expected)
            for part in tiles:
                got[part.rows] = part.tiles
            np.testing.assert_array_equal(got, expected)
            # Each is evicted after its last use.
            assert slide.cache.held_bytes == 0
        segments = -(-WIDTH // SEGMENT) * -(-HEIGHT // SEGMENT)
        assert slide.cache.decoded == before + 3 * segments
        assert slide.seconds_file is not None and slide.seconds_file > 0


def test_memory_that_another_thread_copies_from_is_not_reused() -> None:
    segments: list[batch.Decoded | None] = [batch.decoded(np.full((4, 4, 3), i, np.uint8)) for i in range(4)]
    of_another_thread, pixels = [segments[1]], [segments[2].pixels]  # type: ignore[union-attr]
    spare: list[batch.Decoded] = []
    batch.take_spare(segments, [0, 1, 2], spare)
    assert segments[:3] == [None] * 3 and segments[3] is not None
    # Without a count that is known, nothing is reused.
    assert [int(part.pixels[0, 0, 0]) for part in spare] == ([0] if batch._counts_holders() else [])
    assert of_another_thread and pixels


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the counts of older Pythons")
def test_older_pythons_reuse_memory() -> None:
    assert batch._counts_holders()


@pytest.mark.parametrize("off_by", [-1, 1])
def test_a_python_that_counts_otherwise_reuses_no_memory(
    monkeypatch: pytest.MonkeyPatch, off_by: int
) -> None:
    # The wrapper itself holds its argument once more. At -1 two holders look like one did.
    monkeypatch.setattr(batch, "getrefcount", lambda held: sys.getrefcount(held) - 1 + off_by)
    batch._counts_holders.cache_clear()
    try:
        one, two = (batch.decoded(np.zeros((4, 4, 3), np.uint8)) for _ in range(2))
        segments: list[batch.Decoded | None] = [one, two]
        of_another_thread = [two]
        del one, two
        spare: list[batch.Decoded] = []
        batch.take_spare(segments, [0, 1], spare)
        assert not spare and of_another_thread
    finally:
        batch._counts_holders.cache_clear()


@batched
def test_a_fault_while_others_wait_reaches_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is stopped within a batch leaves nothing pending."""
    path = write(tmp_path / "slide.tiff")
    with open_slide(path) as slide:
        slide.read(0, 0, 8, 8)
        squares = np.empty((2, 50, 50, 3), np.uint8)
        places = np.array([[100, 100], [130, 100]], np.int64)

        def stopped(*_: Any) -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(tiff_level, "decode_segments", stopped)
            with pytest.raises(KeyboardInterrupt):
                slide.read_squares(squares, places)
        with ThreadPoolExecutor(3) as pool:
            for failed in pool.map(lambda _: slide.read_squares(np.empty_like(squares), places), range(3)):
                assert not failed


@batched
def test_a_file_that_can_no_longer_be_read_ends_the_run(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tiff")
    with open_slide(path) as slide:
        slide.read(0, 0, 8, 8)
        path.write_bytes(path.read_bytes()[:2000])
        squares = np.empty((2, 50, 50, 3), np.uint8)
        failed = slide.read_squares(squares, np.array([[200, 100], [100, 100]], np.int64))
        assert len(failed) == 2 and "bytes before its data does" in failed[0][1]
    with pytest.raises(SlideError, match="is closed"):
        slide.read_squares(squares, np.array([[200, 100], [100, 100]], np.int64))


def test_squares_of_any_slide_are_read_one_by_one(tmp_path: Path) -> None:
    Image.fromarray(tissue(HEIGHT, WIDTH)).save(tmp_path / "slide.png")
    with open_slide(tmp_path / "slide.png") as slide:
        squares = np.empty((43, 50, 50, 3), np.uint8)
        assert slide.read_squares(squares, corners(), pad=PAD) == []
        for square, (x, y) in zip(squares, corners().tolist(), strict=True):
            np.testing.assert_array_equal(square, slide.read(x, y, 50, 50, pad=PAD))


def test_resampled_tiles_come_in_parts_of_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "slide.tiff")
    xy = np.random.default_rng(0).uniform(50, (WIDTH - 50, HEIGHT - 50), (30, 2))
    with open_slide(path) as slide:
        slide.mpp = 0.5
        tiles = Tiles(slide, xy, TileShape(20, mpp=1.0), batch_size=16, workers=2)
        expected = np.stack([tiles.read_tile(row) for row in range(30)])
        for limit in (1, 3 * 40 * 40 * 3, 1 << 30):
            monkeypatch.setattr("mclst.runtime.tiling.tiles.RESAMPLED_BYTES", limit)
            got = np.zeros_like(expected)
            for part in tiles:
                got[part.rows] = part.tiles
            np.testing.assert_array_equal(got, expected)


def test_what_cannot_be_decoded_is_left_out_of_resampled_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "slide.tiff")

    def refuse(*_: Any, **__: Any) -> Any:
        raise TileReadError("made up")

    with open_slide(path) as slide:
        slide.mpp = 0.5
        xy = np.full((5, 2), 100.0)
        tiles = Tiles(slide, xy, TileShape(20, mpp=1.0), batch_size=8, workers=1)
        monkeypatch.setattr(segmented_slide.SegmentedSlide, "read_into", refuse)
        monkeypatch.setattr(tiff_level, "can_decode", lambda: False)
        (part,) = list(tiles)
        assert not len(part.rows) and part.failed == tuple((row, "made up") for row in range(5))


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_our_declarations_are_those_of_jpeglib(tmp_path: Path) -> None:
    fields = (
        *("err", "client_data", "global_state", "src", "image_width", "image_height", "num_components"),
        *("out_color_space", "output_gamma", "dct_method", "do_fancy_upsampling", "enable_2pass_quant"),
        *("output_width", "output_height", "output_components", "colormap", "output_scanline"),
    )
    managers = ("error_exit", "emit_message", "msg_code", "trace_level", "num_warnings", "last_addon_message")
    same_size = "sizeof(jpeg_decompress_struct) == libjpeg::DECOMPRESS_BYTES"
    lines = [
        "#include <cstdio>",
        "#include <cstddef>",
        "#include <jpeglib.h>",
        f'#include "{ROOT}/runtime/decoding/src/libjpeg.h"',
        f"static_assert(JPEG_LIB_VERSION != libjpeg::VERSION || {same_size});",
        "static_assert(sizeof(jpeg_error_mgr) == sizeof(libjpeg::ErrorManager));",
        "static_assert(JCS_RGB == libjpeg::OUTPUT_RGB && JPEG_HEADER_OK == libjpeg::HEADER_OK);",
        *(
            f"static_assert(offsetof(jpeg_decompress_struct, {f}) == offsetof(libjpeg::Decompress, {f}));"
            for f in fields
        ),
        *(
            f"static_assert(offsetof(jpeg_error_mgr, {f}) == offsetof(libjpeg::ErrorManager, {f}));"
            for f in managers
        ),
        "int main() {}",
    ]
    source = tmp_path / "layout.cpp"
    source.write_text("\n".join(lines))
    done = subprocess.run(
        ["g++", "-std=c++17", "-fsyntax-only", "-Wno-invalid-offsetof", str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "jpeglib.h: No such file" in done.stderr:
        pytest.skip("jpeglib.h is not installed")
    assert done.returncode == 0, done.stderr[:2000]


@pytest.mark.skipif(library.compiled() is None, reason="the batch decoder is not compiled here")
def test_another_library_is_not_taken_for_libjpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = library.compiled()
    assert functions is not None
    for path in ("no-such-library.so", "libc.so.6", "libm.so.6"):
        assert not functions.mclst_jpeg_open(path.encode())
    monkeypatch.setattr(library, "candidates", lambda: ["no-such-library.so", "libc.so.6"])
    library.libjpeg.cache_clear()
    try:
        assert library.libjpeg() is None and not batch.can_decode()
    finally:
        monkeypatch.undo()
        library.libjpeg.cache_clear()


@batched
def test_a_libjpeg_of_another_version_is_refused_by_itself() -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    others = list(Path(imagecodecs.__file__).parent.parent.glob("imagecodecs.libs/libjpeg-*.so.8*"))
    if not others:
        pytest.skip("no libjpeg with the interface of version 8 is here")
    functions = library.compiled()
    assert functions is not None
    address = functions.mclst_jpeg_open(str(others[0]).encode())
    assert address and not library._decodes(functions, address)
