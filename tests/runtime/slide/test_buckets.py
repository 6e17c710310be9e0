"""Slides in buckets: s3:// by moto, gs:// by a server of as much of Google's API as reading needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import numpy as np
import pytest
import tifffile
from ome_zarr_slides import write_by_zarr
from range_server import Behavior, RangeServer
from synthetic_slides import tissue
from zarr.codecs import BytesCodec, ShardingCodec, ZstdCodec

from mclst.runtime.errors import ResourceError, SlideError
from mclst.runtime.slide.open import open_slide
from mclst.runtime.storage import remote
from mclst.runtime.tiling.tiles import Tiles, TileShape

SIDE, TILE, BUCKET = 1280, 128, "slides"
KEYS = {
    "AWS_ACCESS_KEY_ID": "reader",
    "AWS_SECRET_ACCESS_KEY": "5ec2e7",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}
NOTHING_ELSE = {
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}
"""What this machine has configured plays no part."""


def use_s3_at(url: str, patch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        patch.delenv(name, raising=False)
    for name, value in {**KEYS, **NOTHING_ELSE, "AWS_ENDPOINT_URL": url}.items():
        patch.setenv(name, value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """slides/a slide.tif and slides/slide.zarr, Zarr 3 in shards."""
    folder = tmp_path_factory.mktemp("bucket")
    (folder / BUCKET).mkdir()
    tifffile.imwrite(
        folder / BUCKET / "a slide.tif",
        tissue(SIDE, SIDE),
        tile=(TILE, TILE),
        compression="zlib",
        metadata=None,
    )
    inner = ShardingCodec(chunk_shape=(3, 32, 32), codecs=[BytesCodec(), ZstdCodec()])
    write_by_zarr(
        folder / BUCKET / "slide.zarr", 3, chunks=(3, 128, 96), serializer=inner, compressors=None, levels=2
    )
    return folder


@pytest.fixture(scope="module")
def s3(folder: Path) -> Iterator[Any]:
    """A client of moto's S3, which holds the folder."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with pytest.MonkeyPatch.context() as patch:
            use_s3_at(f"http://{host}:{port}", patch)
            client = boto3.client("s3")
            client.create_bucket(Bucket=BUCKET)
            for path in (folder / BUCKET).rglob("*"):
                if path.is_file():
                    client.upload_file(str(path), BUCKET, path.relative_to(folder / BUCKET).as_posix())
            yield client
    finally:
        server.stop()


@pytest.fixture
def gcs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    """Google's JSON API for media: /download/storage/v1/b/BUCKET/o/KEY?alt=media."""

    pytest.importorskip("gcsfs")

    class Media(RangeServer):
        def path_of(self, name: str) -> Path:
            bucket, _, key = name.removeprefix("download/storage/v1/b/").partition("/o/")
            return self.folder / bucket / unquote(key)

    with Media(folder) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url("").rstrip("/"))
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        monkeypatch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        yield server


@pytest.fixture(params=["s3", "gs"])
def scheme(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)
    request.getfixturevalue({"s3": "s3", "gs": "gcs"}[request.param])
    return str(request.param)


def test_tiles_of_a_bucket_equal_the_local_ones_for_little_more_than_their_bytes(
    folder: Path, scheme: str
) -> None:
    path = folder / BUCKET / "a slide.tif"
    xy = np.random.default_rng(2).uniform((60, 60), (SIDE - 60, SIDE * 0.4), (60, 2))
    expected: dict[int, Any] = {}
    with open_slide(path) as local:
        tiles = Tiles(local, xy, TileShape(96), batch_size=16, workers=3)
        for batch in tiles:
            expected |= {row: tile.copy() for row, tile in zip(batch.rows.tolist(), batch.tiles, strict=True)}
    with open_slide(f"{scheme}://{BUCKET}/a slide.tif") as slide:
        for batch in Tiles(slide, xy, TileShape(96), batch_size=16, workers=3):
            for row, tile in zip(batch.rows.tolist(), batch.tiles, strict=True):
                np.testing.assert_array_equal(tile, expected.pop(row))
        assert slide.remote is not None
        slide.remote.check_unchanged()
        assert slide.path.stem == "a slide" and "ETag" in slide.remote.describe()
        received = slide.remote.bytes_read
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        keys = {
            row * (SIDE // TILE) + column
            for x, y in tiles._corners.tolist()
            for row in range(y // TILE, (y + 95) // TILE + 1)
            for column in range(x // TILE, (x + 95) // TILE + 1)
        }
        needed = sum(page.databytecounts[key] for key in keys)
    assert not expected and needed < received <= 1.3 * needed < 1.3 * path.stat().st_size


def test_an_ome_zarr_of_a_bucket_is_read_chunk_by_chunk(folder: Path, scheme: str) -> None:
    with (
        open_slide(folder / BUCKET / "slide.zarr") as local,
        open_slide(f"{scheme}://{BUCKET}/slide.zarr") as slide,
    ):
        assert (slide.reader, slide.mpp) == ("zarr", local.mpp)
        assert slide.remote is not None
        before = slide.remote.bytes_read
        np.testing.assert_array_equal(slide.read(40, 70, 20, 20), local.read(40, 70, 20, 20))
        first = slide.remote.bytes_read - before  # one inner chunk and its shard's index
        np.testing.assert_array_equal(slide.read(60, 90, 150, 60), local.read(60, 90, 150, 60))
        np.testing.assert_array_equal(slide.read(0, 0, 60, 60, level=1), local.read(0, 0, 60, 60, level=1))
        assert first < 32 * 32 * 3 + 500
        slide.remote.check_unchanged()


def test_a_changed_object_of_a_bucket_is_told(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put_object(
        Bucket=BUCKET, Key="changing.tif", Body=s3.get_object(Bucket=BUCKET, Key="a slide.tif")["Body"].read()
    )
    with open_slide(f"s3://{BUCKET}/changing.tif") as slide:
        slide.read(0, 0, 10, 10)
        s3.put_object(Bucket=BUCKET, Key="changing.tif", Body=b"II*\0" + bytes(10**6))
        with pytest.raises(SlideError, match=r"changed while it was being read \(another ETag\)"):
            slide.read(1000, 1000, 10, 10)
        s3.delete_object(Bucket=BUCKET, Key="changing.tif")
        assert slide.remote is not None
        with pytest.raises(SlideError, match=r"changed while it was being read \(it is gone\)"):
            slide.remote.check_unchanged()


def test_what_a_bucket_lacks_is_a_sentence(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)
    for url in (f"s3://{BUCKET}/none.tif", "s3://another-bucket/slide.tif"):
        with pytest.raises(SlideError, match="does not exist"):
            open_slide(url)
    with pytest.raises(SlideError, match=r"lacks its group"):
        open_slide(f"s3://{BUCKET}/none.zarr")
    for name in KEYS:
        monkeypatch.delenv(name)
    with pytest.raises(SlideError, match="FSSPEC_S3_ANON=true"):
        open_slide(f"s3://{BUCKET}/a slide.tif")


def test_a_lying_bucket_is_told(gcs: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)
    for fault, kind in (
        ("whole", SlideError),
        ("redirect", SlideError),
        ("endless", SlideError),
        ("cut", ResourceError),
    ):
        gcs.behavior = Behavior.lying(fault)
        with pytest.raises(kind, match=r"gs://slides/a slide\.tif"):
            open_slide(f"gs://{BUCKET}/a slide.tif")


@pytest.mark.parametrize("fault", ["cut", "endless", "other_range"])
def test_a_lying_s3_server_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    pytest.importorskip("s3fs")
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)
    with RangeServer(folder, Behavior.lying(fault, after=1)) as server:
        use_s3_at(server.url("").rstrip("/"), monkeypatch)
        with (
            pytest.raises((SlideError, ResourceError)) as caught,
            open_slide(f"s3://{BUCKET}/a slide.tif") as slide,
        ):
            slide.read(0, 0, SIDE, SIDE)
        assert str(caught.value).startswith(f"s3://{BUCKET}/a slide.tif ")
        assert "\n" not in str(caught.value)
