"""What chunks of Zarr arrays claim is checked before zarr unpacks them; chunks by zarr and numcodecs."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mclst.sections import SectionError
from mclst.sections.zarr_arrays import _zstd_size, check_arrays, item_bytes

zarr = pytest.importorskip("zarr")
numcodecs = pytest.importorskip("numcodecs")
codecs = pytest.importorskip("zarr.codecs")

VALUES = np.arange(600, dtype=np.int32).reshape(20, 30)
OLD = {
    "blosc": numcodecs.Blosc(),
    "zstd": numcodecs.Zstd(),
    "lz4": numcodecs.LZ4(),
    "gzip": numcodecs.GZip(),
    "zlib": numcodecs.Zlib(),
}
NEW = {"blosc": codecs.BloscCodec(), "zstd": codecs.ZstdCodec(), "gzip": codecs.GzipCodec()}


def write(folder: Path, name: str, version: int, *, shards: tuple[int, int] | None = None) -> Path:
    """An array of chunks of 8 x 7; the path of its first chunk or shard."""
    codec = OLD[name] if version == 2 else NEW[name]
    zarr.create_array(
        folder,
        data=VALUES,
        chunks=(8, 7),
        shards=shards,
        compressors=codec,
        zarr_format=version,
        fill_value=0,
    )
    return folder / ("0.0" if version == 2 else "c/0/0")


@pytest.mark.parametrize(("version", "name"), [*((2, name) for name in OLD), *((3, name) for name in NEW)])
def test_a_chunk_that_unpacks_to_more_than_its_shape_is_refused(
    tmp_path: Path, version: int, name: str
) -> None:
    chunk = write(tmp_path / "a", name, version)
    check_arrays(tmp_path)
    chunk.write_bytes(OLD[name].encode(bytes(8 * 7 * 4)))
    check_arrays(tmp_path)
    chunk.write_bytes(OLD[name].encode(bytes(8 * 7 * 4 + 1)))
    with pytest.raises(SectionError, match=r"unpacks to 225 bytes or more, where its shape takes 224"):
        check_arrays(tmp_path)


def test_members_of_gzip_count_together_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    chunk = write(tmp_path / "a", "gzip", 3)
    chunk.write_bytes(gzip.compress(bytes(100)) + gzip.compress(bytes(124)))
    check_arrays(tmp_path)
    chunk.write_bytes(gzip.compress(bytes(100)) + gzip.compress(bytes(1 << 20)))
    with pytest.raises(SectionError, match="where its shape takes 224"):
        check_arrays(tmp_path)
    chunk.write_bytes(b"\x1f\x8b" + bytes(30))
    with pytest.raises(SectionError, match="a chunk is damaged"):
        check_arrays(tmp_path)


def test_every_chunk_of_a_shard_counts(tmp_path: Path) -> None:
    shard = write(tmp_path / "a", "zstd", 3, shards=(16, 14))
    check_arrays(tmp_path)
    content = shard.read_bytes()
    index = np.frombuffer(content[-68:-4], "<u8").reshape(4, 2)
    first, length = index[2].tolist()
    bomb = OLD["zstd"].encode(bytes(1 << 20))
    moved, beyond = index.copy(), index.copy()
    moved[2] = len(content) - 68, len(bomb)
    beyond[0] = len(content) - 10, 20
    for changed, words in (
        (content[:-68] + bomb + moved.tobytes() + content[-4:], "unpacks to 1,048,576 bytes"),
        (content[: first + 8] + b"\xff" * (length - 8) + content[first + length :], None),
        (content[-60:], "shorter than its index"),
        (content[:-68] + beyond.tobytes() + content[-4:], "ends before its chunks do"),
    ):
        shard.write_bytes(changed)
        if words is None:
            check_arrays(tmp_path)  # damaged inside: zarr tells it
            continue
        with pytest.raises(SectionError, match=words):
            check_arrays(tmp_path)


@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_pickle_is_refused_unexecuted(tmp_path: Path, place: str) -> None:
    class Program:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    chunk = write(tmp_path / "a", "zlib", 2)
    metadata = tmp_path / "a/.zarray"
    values = json.loads(metadata.read_text())
    values |= {"filters": None, "compressor": None}
    values[place] = [{"id": "pickle"}] if place == "filters" else {"id": "pickle"}
    metadata.write_text(json.dumps(values))
    chunk.write_bytes(pickle.dumps(Program()))
    with pytest.raises(SectionError, match="encoded by pickle, where one of blosc"):
        check_arrays(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_texts_scalars_and_flags_are_taken(tmp_path: Path) -> None:
    for version in (2, 3):
        group = zarr.open_group(tmp_path / f"v{version}", mode="w", zarr_format=version)
        texts = group.create_array("texts", shape=(3,), dtype=str, chunks=(3,))
        texts[:] = np.array(["a" * 900, "b", ""], dtype=object)
        group.create_array("scalar", shape=(), dtype=np.float64)[...] = 3.0
        if version == 2:  # zarr warns of it in format 3
            group.create_array("wide", data=np.array(["abcd", "ef"], dtype="U4"))
        group.create_array("flag", data=np.array([True, False]))
    check_arrays(tmp_path)


def test_what_does_not_say_its_size_is_refused(tmp_path: Path) -> None:
    chunk = write(tmp_path / "a", "zstd", 3)
    # A frame without a content size: one raw block of 224 bytes, the last one (RFC 8878, section 3.1.1).
    block = (224 << 3 | 1).to_bytes(3, "little") + bytes(224)
    chunk.write_bytes(b"\x28\xb5\x2f\xfd\x00\x58" + block)
    with pytest.raises(SectionError, match="does not say its size"):
        check_arrays(tmp_path)
    chunk.write_bytes(b"")
    with pytest.raises(SectionError, match="does not say its size"):
        check_arrays(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunks": [1 << 20, 1 << 20]}, "a chunk takes [0-9,]+ bytes; write the store with smaller chunks"),
        ({"chunks": [-8, 7]}, "a chunk takes"),
        ({"shape": [1 << 30, 30]}, "arrays declare [0-9,]+ bytes in files of"),
        ({"filters": [{"id": "zstd"}]}, "encoded by zstd, zlib"),
        ({"filters": [{"id": "json2"}]}, "encoded by json2"),
        ({"compressor": {"id": "lzma"}}, "encoded by lzma"),
    ],
)
def test_metadata_that_claim_too_much_are_refused(tmp_path: Path, changes: Any, words: str) -> None:
    write(tmp_path / "a", "zlib", 2)
    path = tmp_path / "a/.zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(SectionError, match=words):
        check_arrays(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=2000), st.integers(1, 200), st.integers(-5, 20), st.booleans())
def test_the_size_of_a_zstd_frame_is_its_contents(
    part: bytes, times: int, level: int, checksum: bool
) -> None:
    data = (part or b"x") * times
    frame = numcodecs.Zstd(level=level, checksum=checksum).encode(data)
    assert _zstd_size(frame[:32]) == len(data)


@pytest.mark.parametrize(
    ("kind", "size"),
    [("<f4", 4), ("|b1", 1), ("<U10", 40), ("|O", 8), ("<M8[ns]", 8), ([["a", "<i4"], ["b", "<f8"]], 12)],
)
def test_the_size_of_a_value_of_zarr_2(kind: Any, size: int) -> None:
    assert item_bytes({"dtype": kind}) == size


@pytest.mark.parametrize(
    ("kind", "size"),
    [("float32", 4), ("bool", 1), ("string", 8), ("variable_length_bytes", 8),
     ({"name": "fixed_length_utf32", "configuration": {"length_bytes": 40}}, 40)],
)  # fmt: skip
def test_the_size_of_a_value_of_zarr_3(kind: Any, size: int) -> None:
    assert item_bytes({"data_type": kind}) == size
