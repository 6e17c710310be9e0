"""The cache of features: what comes back is what was added, or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mclst.runtime.errors import InputError
from mclst.runtime.features.cache import FeatureCache

SLIDE = "ab" * 32


def fill(
    cache: FeatureCache, key: dict[str, Any], sizes: list[int], width: int = 3, seed: int = 0
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    rng = np.random.default_rng(seed)
    order = rng.permutation(sum(sizes))
    blocks = []
    with cache.writer(key, len(order)) as writer:
        for size in sizes:
            rows, order = np.sort(order[:size]), order[size:]
            blocks.append((rows, rng.normal(size=(size, width)).astype(np.float32)))
            writer.add(*blocks[-1])
        assert writer.finish(SLIDE, attachment=b"sample"), writer.trouble
    return blocks


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 9))
def test_what_was_added_comes_back(tmp_path_factory: Any, sizes: list[int], width: int) -> None:
    cache = FeatureCache(10**9, tmp_path_factory.mktemp("cache"))
    key = {"encoder": "e", "views": (1.5, 1.0)}
    blocks = fill(cache, key, sizes, width)
    stored = cache.find(key, lambda: SLIDE, sum(sizes))
    assert stored is not None and (stored.width, stored.attachment) == (width, b"sample")
    for (rows, values), (kept_rows, kept_values) in zip(blocks, stored.blocks(), strict=True):
        np.testing.assert_array_equal(kept_rows, rows)
        np.testing.assert_array_equal(kept_values, values)
    stored.close()


def test_another_key_slide_or_number_of_tiles_is_not_taken(tmp_path: Path) -> None:
    cache = FeatureCache(10**9, tmp_path)
    fill(cache, {"encoder": "e"}, [4, 2])
    assert cache.find({"encoder": "other"}, lambda: pytest.fail("no need to hash the slide"), 6) is None
    assert cache.find({"encoder": "e"}, lambda: "cd" * 32, 6) is None
    assert cache.find({"encoder": "e"}, lambda: SLIDE, 7) is None


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def _flip(at: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return change


@pytest.mark.parametrize(
    "spoil",
    [_flip(30), _flip(0), _flip(-60), _flip(-1), _cut, lambda path: path.write_bytes(b""),
     lambda path: path.chmod(0o666)],
    ids=["a value", "the format", "its description", "the hash", "cut off", "empty", "others may write"],
)  # fmt: skip
def test_a_damaged_file_is_not_taken(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    cache, key = FeatureCache(10**9, tmp_path), {"encoder": "e"}
    fill(cache, key, [4, 2])
    (path,) = (tmp_path / "features").iterdir()
    spoil(path)
    assert cache.find(key, lambda: SLIDE, 6) is None
    fill(cache, key, [4, 2])
    again = cache.find(key, lambda: SLIDE, 6)
    assert again is not None and len(again) == 6
    again.close()


def test_a_file_under_the_name_of_another_key_is_not_taken(tmp_path: Path) -> None:
    cache = FeatureCache(10**9, tmp_path)
    fill(cache, {"encoder": "a"}, [6])
    (own,) = (tmp_path / "features").iterdir()
    fill(cache, {"encoder": "b"}, [6])
    (other,) = set((tmp_path / "features").iterdir()) - {own}
    os.replace(own, other)
    assert cache.find({"encoder": "b"}, lambda: SLIDE, 6) is None


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    fill(FeatureCache(10**9, tmp_path), {"n": 0}, [100])
    (first,) = folder.iterdir()
    cache = FeatureCache(round(2.5 * first.stat().st_size), tmp_path)
    os.utime(first, (1000, 1000))
    fill(cache, {"n": 1}, [100])
    (second,) = set(folder.iterdir()) - {first}
    os.utime(second, (2000, 2000))
    used = cache.find({"n": 0}, lambda: SLIDE, 100)
    assert used is not None
    used.close()
    fill(cache, {"n": 2}, [100])
    assert first.exists() and not second.exists() and len(list(folder.iterdir())) == 2


def test_what_is_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = FeatureCache(500, tmp_path)
    with cache.writer({"n": 0}, 100) as writer:
        writer.add(np.arange(100), np.zeros((100, 3), np.float32))
        assert not writer.finish(SLIDE) and "larger than the cache" in writer.trouble
    assert not (tmp_path / "features").exists()


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    cache = FeatureCache(10**9, tmp_path)
    with pytest.raises(Stop), cache.writer({"n": 0}, 8) as writer:
        writer.add(np.arange(8), np.zeros((8, 3), np.float32))
        raise Stop
    assert list((tmp_path / "features").iterdir()) == []
    left = tmp_path / "features" / ".unfinished-of-a-killed-process"
    left.write_bytes(b"1")
    fill(cache, {"n": 0}, [8])
    assert left.exists()
    os.utime(left, (1000, 1000))
    fill(cache, {"n": 1}, [8])
    assert not left.exists()


@pytest.mark.parametrize("folder", ["/proc/no/such/folder", f"/tmp/{'n' * 300}", "/dev/null/mclst"])
def test_a_folder_that_cannot_be_used_is_no_error(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("MCLST_CACHE", folder)
    monkeypatch.setenv("MCLST_FEATURE_CACHE_GB", "1")
    cache = FeatureCache.of_user()
    with cache.writer({"n": 0}, 8) as writer:
        writer.add(np.arange(8), np.zeros((8, 3), np.float32))
        assert not writer.finish(SLIDE) and writer.trouble
    assert cache.find({"n": 0}, lambda: SLIDE, 8) is None


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_size_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MCLST_FEATURE_CACHE_GB", text)
    with pytest.raises(InputError, match="give a number of GB"):
        FeatureCache.of_user()
