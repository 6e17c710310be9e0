"""Pieces of a batch side by side: in order, of the right size, really at the same time, and the same numbers."""

from __future__ import annotations

from pathlib import Path
from threading import Barrier, Lock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.encoder.micro_batches import PIECE, MicroBatches
from mclst.runtime.encoder.onnxruntime_cpu import OnnxSession
from mclst.runtime.inference.providers import open_session


def numbered(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)


@given(n=st.integers(0, 60), lanes=st.integers(1, 9), heavy=st.booleans())
def test_every_tile_is_seen_once_and_in_order(n: int, lanes: int, heavy: bool) -> None:
    sizes, lock = [], Lock()

    def double(tiles: np.ndarray) -> np.ndarray:
        with lock:
            sizes.append(len(tiles))
        return tiles.reshape(len(tiles), 1).astype(np.float32) * 2

    found = MicroBatches(double, lanes, heavy=heavy)(numbered(n))
    assert np.array_equal(found[:, 0], 2 * np.arange(n))
    assert sum(sizes) == n and max(sizes) <= -(-n // lanes)
    if lanes > 1 and not heavy:
        assert max(sizes) <= PIECE
    if lanes > 1 and heavy:
        assert len(sizes) <= lanes


def test_lanes_work_at_the_same_time() -> None:
    barrier = Barrier(3)

    def meet(tiles: np.ndarray) -> np.ndarray:
        barrier.wait(timeout=20)
        return tiles.reshape(len(tiles), 1).astype(np.float32)

    assert len(MicroBatches(meet, 3, heavy=False)(numbered(9))) == 9


def test_a_fault_in_a_lane_reaches_the_caller() -> None:
    def fails(tiles: np.ndarray) -> np.ndarray:
        if tiles[0, 0, 0, 0] >= 4:
            raise RuntimeError("no memory")
        return tiles.reshape(len(tiles), 1).astype(np.float32)

    with pytest.raises(RuntimeError, match="no memory"):
        MicroBatches(fails, 2, heavy=False)(numbered(12))


@pytest.mark.parametrize(("threads", "at_once"), [(1, 16), (2, 16), (3, 2), (4, 1)])
@pytest.mark.slow
def test_an_encoder_gives_the_same_however_its_threads_are_shared_out(
    exported_bundle: Path, threads: int, at_once: int
) -> None:
    path = open_bundle(exported_bundle).encoder_path
    side = OnnxSession(path)._tile[0]
    tiles = np.random.default_rng(2).integers(0, 256, (13, side, side, 3), dtype=np.uint8)
    one_by_one = open_session(path, "cpu", threads=1, at_once=1)
    wanted = np.concatenate([one_by_one.encode(tiles[i : i + 1]) for i in range(len(tiles))])
    found = open_session(path, "cpu", threads=threads, at_once=at_once).encode(tiles)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
