"""What a command is given."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_model import Small


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Small, small_bundle: Path) -> Path:
    """A working folder with slide.png, spots.tsv and mclst-bundle."""
    shutil.copy(small.slide, tmp_path / "slide.png")
    shutil.copy(small.spots, tmp_path / "spots.tsv")
    shutil.copytree(small_bundle, tmp_path / "mclst-bundle")
    monkeypatch.chdir(tmp_path)
    return tmp_path
