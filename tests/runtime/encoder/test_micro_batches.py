"""Micro-batches: in order, of the right size, in parallel, and with the same results."""

from __future__ import annotations

from pathlib import Path
from threading import Barrier, Lock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.encoder.micro_batches import MICRO_BATCH_SIZE, MicroBatches
from mclst.runtime.providers.opening import open_session


def numbered(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)


@given(n=st.integers(0, 60), threads=st.integers(1, 9), heavy=st.booleans())
def test_every_tile_is_seen_once_and_in_order(n: int, threads: int, heavy: bool) -> None:
    sizes, lock = [], Lock()

    def double(tiles: np.ndarray) -> np.ndarray:
        with lock:
            sizes.append(len(tiles))
        return tiles.reshape(len(tiles), 1).astype(np.float32) * 2

    result = MicroBatches(double, threads, heavy=heavy)(numbered(n))
    assert np.array_equal(result[:, 0], 2 * np.arange(n))
    assert sum(sizes) == n and max(sizes) <= -(-n // threads)
    if threads > 1 and not heavy:
        assert max(sizes) <= MICRO_BATCH_SIZE
    if threads > 1 and heavy:
        assert len(sizes) <= threads


def test_threads_work_at_the_same_time() -> None:
    barrier = Barrier(3)

    def meet(tiles: np.ndarray) -> np.ndarray:
        barrier.wait(timeout=600)
        return tiles.reshape(len(tiles), 1).astype(np.float32)

    count = 3 * MICRO_BATCH_SIZE
    assert len(MicroBatches(meet, 3, heavy=False)(numbered(count))) == count


def test_a_fault_in_a_thread_reaches_the_caller() -> None:
    def fails(tiles: np.ndarray) -> np.ndarray:
        if tiles[0, 0, 0, 0] >= 4:
            raise RuntimeError("no memory")
        return tiles.reshape(len(tiles), 1).astype(np.float32)

    with pytest.raises(RuntimeError, match="no memory"):
        MicroBatches(fails, 2, heavy=False)(numbered(12))


@pytest.mark.parametrize(("threads", "lanes"), [(1, 1), (2, 2), (3, 2), (4, 1)])
@pytest.mark.slow
def test_an_encoder_gives_the_same_however_its_threads_are_shared_out(
    exported_bundle: Path, threads: int, lanes: int
) -> None:
    bundle = open_bundle(exported_bundle)
    path, side = bundle.encoder_path, bundle.manifest.tile.size_px
    tiles = np.random.default_rng(2).integers(0, 256, (13, side, side, 3), dtype=np.uint8)
    one_by_one = open_session(path, "cpu", threads=1)
    expected = np.concatenate([one_by_one.encode(tiles[i : i + 1]) for i in range(len(tiles))])
    result = open_session(path, "cpu", threads=threads, lanes=lanes).encode(tiles)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-5)
