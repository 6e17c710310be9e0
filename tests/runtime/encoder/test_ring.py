"""The ring on a fake device that finishes work late and out of order, or fails."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formula_slide import reading_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from small_model import Small
from synthetic_slides import tissue

from mclst.runtime import RunOptions, open_bundle, open_slide, predict
from mclst.runtime.encoder.cpu_stages import CpuStages
from mclst.runtime.encoder.ring import Group, Ring, encode_now
from mclst.runtime.errors import ResourceError
from mclst.runtime.progress import Clock
from mclst.runtime.providers.opening import open_session
from mclst.runtime.tiling.tiles import Tiles, TileShape

SIDE, WIDTH = 4, 3
# Integers, so that sums are exact in any order.
WEIGHTS = np.random.default_rng(1).integers(-9, 10, (SIDE * SIDE * 3, WIDTH)).astype(np.float32)


def encoded(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (tiles.reshape(len(tiles), -1).astype(np.float32) @ WEIGHTS).astype(np.float32)


@dataclass(eq=False)
class Work:
    """A pending operation of the device; it reads memory only when it runs."""

    kind: str
    run: Any
    after: list[Work]
    finished: bool = False

    def ready(self) -> bool:
        return all(work.finished for work in self.after)


@dataclass
class LateDevice:
    """Stages that run late.

    Every call runs a random part of the pending work whose dependencies are finished, in random order. A copy
    reads the host buffer when it runs, not when it is submitted, so writing there or reading a group too
    early gives wrong numbers.
    """

    rng: np.random.Generator
    batch: int
    group_rows: int
    slots: int = 4
    groups: int = 2
    fails_at: int = -1
    pending: list[Work] = field(default_factory=list)
    done_count: int = 0
    most_pending: int = 0
    encoding: int = 0
    closed: int = 0

    def __post_init__(self) -> None:
        shape = (self.slots, self.batch, SIDE, SIDE, 3)
        self.host, self.device = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        self.outputs = np.full((self.slots, self.batch, WIDTH), np.nan, np.float32)
        self.gathered = np.full((self.groups, self.group_rows, WIDTH), np.nan, np.float32)
        self.lock = threading.Lock()

    def tiles(self, slot: int) -> NDArray[np.uint8]:
        return self.host[slot]

    def put(self, kind: str, run: Any, after: Sequence[Work]) -> Work:
        assert not self.closed
        work = Work(kind, run, list(after))
        self.pending.append(work)
        self.most_pending = max(self.most_pending, len(self.pending))
        self.run_some(0.3)
        return work

    def upload(self, slot: int, n: int, after: Sequence[Work]) -> Work:
        def run() -> None:
            self.device[slot, :n] = self.host[slot, :n]

        return self.put("upload", run, after)

    def encode(self, slot: int, n: int, after: Sequence[Work]) -> Work:
        def run() -> None:
            # A full batch, as on a device; the remaining rows encode stale tiles.
            self.outputs[slot] = encoded(self.device[slot])

        return self.put("encode", run, after)

    def gather(self, slot: int, n: int, group: int, at: int, after: Sequence[Work]) -> Work:
        def run() -> None:
            self.gathered[group, at : at + n] = self.outputs[slot, :n]
            self.outputs[slot] = np.nan

        return self.put("gather", run, after)

    def group(self, group: int, n: int) -> NDArray[np.float32]:
        return self.gathered[group, :n]

    def done(self, ticket: Work) -> bool:
        self.run_some(0.3)
        return ticket.finished

    def wait(self, ticket: Work) -> None:
        while not ticket.finished:
            self.run_some(0.5)

    def close(self) -> None:
        self.closed += 1

    def run_some(self, share: float) -> None:
        for index in self.rng.permutation(len(self.pending)).tolist():
            work = self.pending[index]
            if work.ready() and self.rng.random() < share:
                if self.done_count == self.fails_at:
                    raise ResourceError(f"the device failed at {work.kind}")
                work.run()
                work.finished = True
                self.done_count += 1
        self.pending = [work for work in self.pending if not work.finished]


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.png"
    Image.fromarray(tissue(100, 100)).save(path)
    return path


def places(n: int) -> NDArray[np.float64]:
    return np.random.default_rng(3).uniform(2, 90, (n, 2))


def expected_rows(path: Path, xy: NDArray[np.float64]) -> NDArray[np.float32]:
    with open_slide(path) as slide:
        tiles = Tiles(slide, xy, TileShape(SIDE), batch_size=1, workers=1)
        return encoded(np.stack([tiles.read_tile(row) for row in range(len(xy))]))


def through(
    device: Any, path: Path, xy: NDArray[np.float64], batch: int, group: int, workers: int
) -> tuple[NDArray[np.float32], list[Group], int]:
    result = np.full((len(xy), WIDTH), np.nan, np.float32)
    groups, count = [], 0
    with open_slide(path) as slide:
        tiles = Tiles(slide, xy, TileShape(SIDE), batch_size=batch, workers=workers, group=group)
        with closing(Ring(device).run(tiles)) as steps:
            for step in steps:
                count += step.count
                if step.group is not None:
                    result[step.group.rows] = step.group.values
                    groups.append(step.group)
    return result, groups, count


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 70),
    batch=st.integers(1, 9),
    group=st.integers(1, 5),
    slots=st.integers(1, 6),
    workers=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_every_row_comes_once_and_right_however_late_the_device_is(
    slide_path: Path, n: int, batch: int, group: int, slots: int, workers: int, seed: int
) -> None:
    xy, before = places(n), reading_threads()
    device = LateDevice(np.random.default_rng(seed), batch, batch * group, slots)
    result, groups, count = through(device, slide_path, xy, batch, group, workers)
    np.testing.assert_array_equal(result, expected_rows(slide_path, xy))
    assert count == n
    assert [len(g.rows) for g in groups] == [min(batch * group, n - at) for at in range(0, n, batch * group)]
    assert sorted(np.concatenate([g.rows for g in groups]).tolist()) == list(range(n))
    assert device.closed == 1 and device.most_pending <= 3 * slots + 3 * group * device.groups
    assert reading_threads() <= before


def test_several_batches_are_under_way_at_once(slide_path: Path) -> None:
    device = LateDevice(np.random.default_rng(0), 4, 16)
    through(device, slide_path, places(64), 4, 4, 2)
    assert device.most_pending > 3


def test_a_slot_is_read_into_only_when_its_tiles_are_on_the_device(slide_path: Path) -> None:
    class Stubborn(LateDevice):
        """Does nothing until it is waited for, so that back-pressure alone moves it."""

        def run_some(self, share: float) -> None:
            if share == 0.5:
                super().run_some(1.0)

    device = Stubborn(np.random.default_rng(0), 4, 8, slots=3)
    result, _, _ = through(device, slide_path, places(50), 4, 2, 2)
    np.testing.assert_array_equal(result, expected_rows(slide_path, places(50)))


@settings(max_examples=40, deadline=None)
@given(at=st.integers(0, 35), seed=st.integers(0, 2**32))
def test_a_fault_in_any_stage_ends_the_run(slide_path: Path, at: int, seed: int) -> None:
    device, before = LateDevice(np.random.default_rng(seed), 5, 10, fails_at=at), reading_threads()
    with pytest.raises(ResourceError, match=r"the device failed at (upload|encode|gather)"):
        through(device, slide_path, places(60), 5, 2, 2)
    assert device.closed == 1
    assert reading_threads() <= before


def test_whoever_stops_early_leaves_nothing_running(slide_path: Path) -> None:
    device, before = LateDevice(np.random.default_rng(0), 4, 8), reading_threads()
    with open_slide(slide_path) as slide:
        tiles = Tiles(slide, places(60), TileShape(SIDE), batch_size=4, workers=2, group=2)
        with closing(Ring(device).run(tiles)) as steps:
            next(steps)
    assert device.closed == 1
    assert reading_threads() <= before


@pytest.mark.parametrize("n", [1, 4, 9])
def test_tiles_at_hand_go_through_stages_batch_by_batch(n: int) -> None:
    tiles = np.random.default_rng(n).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
    late = encode_now(LateDevice(np.random.default_rng(2), 4, 4), tiles)
    host = encode_now(CpuStages(encoded, batch=(4, SIDE, SIDE, 3), group_rows=4, clock=Clock()), tiles)
    np.testing.assert_allclose(late, encoded(tiles), rtol=1e-5)
    np.testing.assert_array_equal(late, host)


# --- a whole run ----------------------------------------------------------------------------------


class LateSession:
    """The bundle's encoder behind a late device, which may fail at some point of the run."""

    provider, engine = "cpu", "late"

    def __init__(self, path: Path, fails_at: int = -1) -> None:
        self.inner, self.fails_at = open_session(path), fails_at
        self.devices: list[LateDevice] = []

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.inner.encode(tiles)

    def stages(
        self, batch: int, *, group_rows: int, on_device: bool, clock: Clock, slots: int | None = None
    ) -> Any:
        session = self

        class Device(LateDevice):
            def __post_init__(self) -> None:
                super().__post_init__()
                shape = (self.slots, self.batch, 32, 32, 3)
                self.host, self.device = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
                self.outputs = np.full((self.slots, self.batch, 16), np.nan, np.float32)
                self.gathered = np.full((self.groups, self.group_rows, 16), np.nan, np.float32)

            def encode(self, slot: int, n: int, after: Sequence[Work]) -> Work:
                def run() -> None:
                    self.outputs[slot, :n] = session.encode(self.device[slot, :n])

                return self.put("encode", run, after)

        self.devices.append(Device(np.random.default_rng(5), batch, group_rows, fails_at=self.fails_at))
        return self.devices[-1]


def test_a_map_by_a_late_device_is_the_map(
    small: Small, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import anndata

    def run(out: Path) -> Any:
        with open_slide(small.slide) as slide:
            predict(
                open_bundle(small_bundle), slide, small.spots, out, RunOptions(batch_size=5, picture=False)
            )
        return anndata.read_h5ad(out).X

    expected = run(tmp_path / "a.h5ad")
    session = LateSession(small_bundle / "encoder.onnx")
    monkeypatch.setattr(
        "mclst.runtime.inference.loaded_model.open_encoder", lambda provider, request: (session, "")
    )
    np.testing.assert_allclose(run(tmp_path / "b.h5ad"), expected, rtol=0, atol=1e-5)
    assert session.devices[0].closed == 1


@pytest.mark.parametrize("at", [0, 1, 2, 5, 9, 13])
def test_a_device_that_fails_leaves_no_file(
    small: Small, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    session = LateSession(small_bundle / "encoder.onnx", fails_at=at)
    monkeypatch.setattr(
        "mclst.runtime.inference.loaded_model.open_encoder", lambda provider, request: (session, "")
    )
    with open_slide(small.slide) as slide, pytest.raises(ResourceError, match="the device failed"):
        predict(
            open_bundle(small_bundle), slide, small.spots, tmp_path / "map.h5ad", RunOptions(batch_size=5)
        )
    assert list(tmp_path.iterdir()) == []
    assert session.devices[0].closed == 1
