"""Slides of sections by address: the local tiles, no secret in any file, and refusals that write nothing."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp  # noqa: F401 - without it there is nothing to test
import fsspec  # noqa: F401
import numpy as np
import pytest
import tifffile
from PIL import Image
from range_server import Behavior, RangeServer
from refusals import assert_refused
from small_model import write_reference
from training_runs import QUICK, run

from mclst.evaluation.baselines.stain import read_stain
from mclst.export.inputs.references import SectionImage
from mclst.export.parity.tiles import real_tiles
from mclst.runtime.bundle.manifest import Tile
from mclst.runtime.section_options import SectionFiles
from mclst.runtime.storage import http, remote
from mclst.sections import Section, find_sections, read_section
from mclst.training.data import read_training_section
from mclst.training.fitting.sections import read_fit_section

SECRETS = ("5ec2e7", "pa55word")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sections/ of A1, A2 and B1, without the image of A1, which is web/slide.tif."""
    write_reference(tmp_path / "sections", spots=12)
    (tmp_path / "web").mkdir()
    picture = tmp_path / "sections/images/A1.png"
    tifffile.imwrite(
        tmp_path / "web/slide.tif", np.asarray(Image.open(picture)), tile=(64, 64), photometric="rgb",
        resolution=(20000, 20000), resolutionunit="CENTIMETER", metadata=None,
    )  # fmt: skip
    picture.unlink()
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.0)
    for name in ("CONNECT_S", "SILENCE_S"):  # a busy machine's server is waited for
        monkeypatch.setattr(http, name, 600.0)
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder / "web") as server:
        yield server


def secret_url(server: RangeServer) -> str:
    return server.url("slide.tif?signature=5ec2e7", userinfo="me:pa55word@")


def section_with(folder: Path, image: str) -> Section:
    sources = find_sections(folder / "sections")
    return read_section(SectionFiles(images=(f"A1={image}",)).give(sources)["A1"])


def test_every_way_that_reads_sections_takes_an_address(folder: Path, server: RangeServer) -> None:
    local, away = (
        section_with(folder, image) for image in (str(folder / "web/slide.tif"), secret_url(server))
    )
    assert str(away.image) == server.url("slide.tif")
    genes = local.genes[:3].tolist()
    ours, theirs = (read_training_section(section, genes, Tile(size_px=16)) for section in (away, local))
    np.testing.assert_array_equal(ours.tiles, theirs.tiles)
    assert ours.tiles.any() and len(ours.spot) == 12
    fit = read_fit_section(away, genes, None)
    assert fit.mpp == 0.5 and str(fit.image) == server.url("slide.tif")
    assert away.image is not None and away.xy_px is not None and local.image is not None
    images = [SectionImage(s.name, s.image, away.xy_px, 0, s.spot) for s in (away, local) if s.image]
    of_address, of_file = (real_tiles([image], Tile(size_px=16), 5, print) for image in images)
    assert of_address is not None and of_file is not None
    np.testing.assert_array_equal(of_address.pixels, of_file.pixels)
    stains = [read_stain(section.image, away.xy_px) for section in (away, local) if section.image]
    np.testing.assert_array_equal(stains[0].values, stains[1].values)


def test_a_checkpoint_holds_no_secret_of_an_address(folder: Path, server: RangeServer) -> None:
    (folder / "sections/images.csv").write_text(f"section,image\nA1,{secret_url(server)}\n")
    out = folder / "model.pt"
    words = (folder / "sections", "--sections", "A1", "--out", out, "--json", folder / "train.json")
    done = run(*words, *QUICK)
    assert done.exit_code == 0, done.output
    with zipfile.ZipFile(out) as archive:
        written = [archive.read(name) for name in archive.namelist()]
    written += [(folder / "train.json").read_bytes(), done.output.encode()]
    assert not [secret for secret in SECRETS for text in written if secret.encode() in text]


@pytest.mark.parametrize(
    ("image", "behavior", "code", "words"),
    [
        ("", Behavior(cut=1 << 30, after=1), 6, ("tried 4 times",)),
        ("", Behavior(other_etag=1 << 30, after=1), 4, ("changed while it was being read",)),
        ("", Behavior(status=403), 4, ("is refused by its server (status 403)",)),
        ("", Behavior(redirect=1 << 30), 4, ("is sent elsewhere",)),
        ("http://127.0.0.1:1/absent.tif?key=5ec2e7", Behavior(), 6, ("no connection",)),
        ("ftp://me:pa55word@host/a.tif", Behavior(), 4, ("--image A1: a slide at ftp:// cannot be read",)),
        ("http://me:pa55word@example.org/a.tif", Behavior(), 4, ("use https://",)),
    ],
    ids=["cut", "changed", "forbidden", "redirect", "no server", "scheme", "password in clear"],
)
def test_a_slide_that_cannot_be_fetched_ends_the_training(
    folder: Path, server: RangeServer, image: str, behavior: Behavior, code: int, words: tuple[str, ...]
) -> None:
    server.behavior = behavior
    given = f"A1={image or secret_url(server)}"
    out = folder / "model.pt"
    done = run(folder / "sections", "--sections", "A1", "--image", given, "--out", out, "-q", *QUICK)
    assert_refused(done, code, words)
    assert not out.exists() and not [secret for secret in SECRETS if secret in done.output]


def test_an_address_without_its_section_is_refused_and_not_repeated(folder: Path) -> None:
    shutil.rmtree(folder / "web")
    words = (folder / "sections", "--image", "https://me:pa55word@host/a.tif?x=5ec2e7", *QUICK)
    done = run(*words, "--out", folder / "model.pt", "-q")
    assert_refused(done, 4, ("--image an address is neither NAME=SLIDE nor a table",))
    assert not [secret for secret in SECRETS if secret in done.output]
