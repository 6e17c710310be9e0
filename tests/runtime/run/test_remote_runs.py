"""`mclst-infer` with addresses: the local map, resumed when a server fails, and no secret in any file."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp  # noqa: F401 - without it there is nothing to test
import anndata
import fsspec  # noqa: F401
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from range_server import Behavior, RangeServer
from refusals import assert_refused
from synthetic_slides import tissue

from mclst.runtime.cli.infer import main
from mclst.runtime.cli.report import main as report_main
from mclst.runtime.storage import http, remote, remote_file

SPOTS = ("--spots", "spots.csv", "--no-picture", "--no-html", "--workers", "2", "--no-cache", "-q")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, small_bundle: Path) -> Path:
    """mclst-bundle, web/slide.tif, and local.h5ad: its map without a server."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(small_bundle, folder / "mclst-bundle")
    (folder / "web").mkdir()
    image = tissue(400, 4400)
    with tifffile.TiffWriter(folder / "web/slide.tif") as tif:
        for level in (image, image[::2, ::2]):  # the picture comes from the second
            tif.write(
                np.ascontiguousarray(level), tile=(128, 128), compression="jpeg", photometric="rgb",
                resolution=(20000, 20000), resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip
    rows = [f"s{i},{20 + 43 * (i % 100)},{20 + 40 * (i // 100)}" for i in range(1000)]
    (folder / "spots.csv").write_text("id,x,y\n" + "\n".join(rows) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert infer("web/slide.tif", *SPOTS, "--out", "local.h5ad").exit_code == 0
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the bundle; small ranges and no pauses, so that faults come midway."""
    (tmp_path / "mclst-bundle").symlink_to(place / "mclst-bundle")
    shutil.copytree(place / "web", tmp_path / "web")
    shutil.copy(place / "spots.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(remote_file, "RANGE_BYTES", 1 << 13)
    for name in ("CONNECT_S", "SILENCE_S"):
        monkeypatch.setattr(http, name, 600.0)
    return tmp_path


@pytest.fixture
def server(here: Path) -> Iterator[RangeServer]:
    with RangeServer(here / "web") as server:
        yield server


def infer(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def late(here: Path) -> tuple[int, int]:
    """Bytes of level 0 under the last quarter of the spots, which no picture needs."""
    size = (here / "web/slide.tif").stat().st_size
    return size * 3 // 5, size * 7 // 10


def same_map(place: Path, path: Path) -> None:
    np.testing.assert_array_equal(anndata.read_h5ad(path).X, anndata.read_h5ad(place / "local.h5ad").X)


def test_the_map_is_the_local_one_and_names_what_was_read(
    place: Path, here: Path, server: RangeServer
) -> None:
    url = server.url("slide.tif?signature=5ec2e7", userinfo="me:pa55word@")
    done = infer(url, "--spots", "spots.csv", "--workers", "2", "--csv", "--geojson", "--json", "-")
    assert done.exit_code == 0, done.output
    same_map(place, here / "slide.h5ad")
    slide = json.loads((here / "slide.run.json").read_text())["slide"]
    assert slide["name"] == "slide.tif" and slide["address"] == server.url("slide.tif")
    assert (
        "ETag" in slide["version"] and slide["bytes_read"] <= server.sent and len(slide["read_sha256"]) == 64
    )
    assert "sha256" not in slide
    assert dict(anndata.read_h5ad("slide.h5ad").uns["mclst"]["slide"])["read_sha256"] == slide["read_sha256"]
    written = [path.read_bytes() for path in here.glob("*") if path.is_file()]
    for text in (done.output.encode(), *written):
        assert b"5ec2e7" not in text and b"pa55word" not in text
    again = server.url("slide.tif?signature=5ec2e7")
    assert_refused(infer(again, *SPOTS), 5, ("slide.h5ad exists",))
    redrawn = CliRunner().invoke(report_main, ["slide.h5ad", "--slide", again, "--overwrite", "-q"])
    assert redrawn.exit_code == 0, redrawn.output


def test_a_run_resumes_where_its_server_failed(place: Path, here: Path, server: RangeServer) -> None:
    words = (server.url("slide.tif"), *SPOTS, "--no-report")
    server.behavior = Behavior(only=late(here), cut=1 << 30)
    assert_refused(infer(*words), 6, ("tried 4 times", "resume"))
    assert [path.name for path in here.glob("slide*")] == []
    assert (here / ".slide.h5ad.journal").stat().st_size > 0
    server.behavior, before = Behavior(), len(server.requests)
    done = infer(*(word for word in words if word != "-q"))
    assert done.exit_code == 0 and "resuming a stopped run" in done.stderr, done.output
    same_map(place, here / "slide.h5ad")
    assert not list(here.glob(".slide*")) and len(server.requests) > before


def test_a_slide_that_changes_ends_the_run_and_is_not_resumed(here: Path, server: RangeServer) -> None:
    words = (server.url("slide.tif"), *SPOTS)
    server.behavior = Behavior(only=late(here), other_etag=1 << 30)
    assert_refused(infer(*words), 4, ("changed while it was being read (another ETag)",))
    assert not (here / "slide.h5ad").exists()
    server.behavior = Behavior()
    (here / "web/slide.tif").write_bytes((here / "web/slide.tif").read_bytes() + b"more")
    done = infer(*(word for word in words if word != "-q"))
    assert done.exit_code == 0 and "another: the slide; starting over" in done.stderr, done.output


def test_without_an_etag_or_a_time_nothing_is_taken_over(here: Path, server: RangeServer) -> None:
    words = (server.url("slide.tif"), *SPOTS)
    server.behavior = Behavior(only=late(here), cut=1 << 30, tell_etag=False)
    assert infer(*words).exit_code == 6
    server.behavior = Behavior(tell_etag=False)
    done = infer(*(word for word in words if word != "-q"))
    assert done.exit_code == 0 and "another: the slide; starting over" in done.stderr, done.output


def test_a_cohort_names_slides_by_address_and_skips_finished_ones(here: Path, server: RangeServer) -> None:
    url = server.url("slide.tif?signature=5ec2e7")
    (here / "cohort.csv").write_text(f"slide,grid\n{url},30\n")
    words = ("--slides", "cohort.csv", "--out", "maps", "--no-picture", "--no-html", "-q")
    for status in ("done", "skipped"):
        done = infer(*words)
        assert done.exit_code == 0, done.output
        text = (here / "maps/cohort.run.json").read_text()
        (slide,) = json.loads(text)["slides"]
        assert (slide["status"], slide["slide"]) == (status, server.url("slide.tif"))
        assert "5ec2e7" not in text + (here / "maps/slide.run.json").read_text()
    (here / "web/slide.tif").write_bytes((here / "web/slide.tif").read_bytes() + b"more")
    assert infer(*words).exit_code == 3
    (slide,) = json.loads((here / "maps/cohort.run.json").read_text())["slides"]
    assert "made from another: the slide" in slide["error"]["message"]
    (here / "cohort.csv").write_text("slide,grid\nftp://host/a.tif,30\n")
    assert_refused(infer(*words), 4, ("line 2", "ftp://"))


def test_another_scheme_is_wrong_usage_and_missing_packages_are_named(
    here: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert infer("ftp://host/a.tif", *SPOTS).exit_code == 2
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.delitem(sys.modules, "mclst.runtime.storage.http", raising=False)
    assert_refused(infer(server.url("slide.tif"), *SPOTS), 6, ("fsspec", "mclst[remote]"))
