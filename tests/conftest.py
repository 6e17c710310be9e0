"""Shared by the tests: real data where it is present, and a small bundle made on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked_runs import Forked, write_sound
from small_model import TILE_PX, Small, tiny_network, write_reference

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def her2st() -> Path:
    """The real HER2+ sections and checkpoint."""
    folder = SHARED / "her2st"
    if not (folder / "model.pt").is_file():
        pytest.skip("the HER2+ sections and checkpoint are not beside this checkout (../shared/her2st)")
    return folder


@pytest.fixture(scope="session")
def slides() -> Path:
    """Real slide files of several vendors."""
    folder = SHARED / "slides"
    if not folder.is_dir():
        pytest.skip("the real slides are not beside this checkout (../shared/slides)")
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Three made-up sections and an untrained ResNet-18 mclSTExp for them."""
    folder = tmp_path_factory.mktemp("small")
    write_reference(folder)
    ckpt = folder / "model.pt"
    torch.save(tiny_network().state_dict(), ckpt)
    return Small(folder, ckpt, folder / "images" / "B1.png", folder / "spots" / "B1_selection.tsv")


@pytest.fixture(scope="session")
def small_bundle(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of it, without section B1; copy it before changing anything."""
    from mclst.export.bundling import export_bundle

    out = tmp_path_factory.mktemp("bundle") / "mclst-bundle"
    change = {"tile": {"size_px": TILE_PX}, "retrieval": {"k": 10}}
    export_bundle(small.ckpt, out, references=[small.folder], hold_out=["B1"], change=change, parity_tiles=8)
    return out


@pytest.fixture(scope="session")
def forked() -> Iterator[Forked]:
    """Runs of mclst-infer in processes of their own."""
    with Forked() as server:
        yield server


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory, small_bundle: Path) -> Path:
    """slide.tif, spots.csv and mclst-bundle, all as they should be; copy it before changing anything."""
    return write_sound(tmp_path_factory.mktemp("sound"), small_bundle)


@pytest.fixture
def said(tmp_path: Path) -> Path:
    """An empty folder for what a run says."""
    (tmp_path / "said").mkdir()
    return tmp_path / "said"
