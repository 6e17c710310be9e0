"""The user's cache: what is unfinished does not stay, and a user without a home keeps nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from mclst.kernels.definition.user_cache import cache_folder, read_own, store_own
from mclst.runtime.features.cache import FeatureCache


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entry() -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    for name in ("MCLST_CACHE", "XDG_CACHE_HOME", "MCLST_FEATURE_CACHE_GB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_entry)
    path = cache_folder() / "openvino" / "a.blob"
    assert not store_own(path, b"1") and read_own(path) is None
    cache = FeatureCache.of_user()
    with cache.writer({"n": 0}, 8) as writer:
        writer.add(np.arange(8), np.zeros((8, 3), np.float32))
        assert not writer.finish("0" * 64) and writer.trouble
    assert cache.find({"n": 0}, lambda: "0" * 64, 8) is None


def test_what_a_killed_process_left_goes_a_day_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCLST_CACHE", str(tmp_path))
    kept = tmp_path / "openvino" / "a.blob"
    assert store_own(kept, b"1")
    old, new = (kept.with_name(f".unfinished-{name}") for name in ("old", "new"))
    for path in (kept, old, new):
        path.write_bytes(b"2")
    for path in (kept, old):
        os.utime(path, (1000, 1000))
    assert store_own(kept.with_name("b.blob"), b"3")
    assert sorted(path.name for path in kept.parent.iterdir()) == [".unfinished-new", "a.blob", "b.blob"]
