"""The batch of a slow encoder, on a played clock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mclst.runtime.encoder.cpu_stages import CpuSession
from mclst.runtime.encoder.micro_batches import MicroBatches
from mclst.runtime.providers import batch_choice
from mclst.runtime.providers.batch_choice import BATCH_SECONDS, prompt_batch


class Played:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class SlowSession(CpuSession):
    """`lanes` tiles at once take `seconds` on a played clock."""

    provider, engine = "cpu", "a test"

    def __init__(self, played: Played, seconds: float, lanes: int, *, heavy: bool = True) -> None:
        self._tile = (2, 2, 3)
        self.tried: list[int] = []
        self.played, self.seconds = played, seconds
        self._run = MicroBatches(lambda tiles: np.zeros((len(tiles), 1), np.float32), lanes, heavy=heavy)

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.tried.append(len(tiles))
        self.played.now += self.seconds * -(-len(tiles) // self.lanes)
        return super().encode(tiles)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Played:
    clock = Played()
    monkeypatch.setattr(batch_choice, "time", clock)
    monkeypatch.setenv("MCLST_CACHE", str(tmp_path))
    return clock


@pytest.mark.parametrize(
    ("seconds", "lanes", "batch"),
    [
        (0.1, 2, 16),
        (0.6, 2, 16),
        (0.7, 2, 8),
        (2.0, 2, 4),
        (3.0, 2, 2),
        (90.0, 2, 2),
        (3.0, 8, 8),
        (2.0, 8, 16),
    ],
)
def test_a_batch_takes_five_seconds_at_most_or_a_tile_per_lane(
    seconds: float, lanes: int, batch: int, played: Played
) -> None:
    session = SlowSession(played, seconds, lanes)
    assert prompt_batch(session, "graph", "fp32", 16) == batch
    assert session.tried == [lanes]
    assert batch == lanes or seconds * batch / lanes <= BATCH_SECONDS


def test_the_next_run_takes_the_same_batch_without_trying(played: Played) -> None:
    assert prompt_batch(SlowSession(played, 2.0, 2), "graph", "fp32", 16) == 4
    again = SlowSession(played, 0.1, 2)
    assert prompt_batch(again, "graph", "fp32", 16) == 4 and not again.tried
    assert prompt_batch(again, "another graph", "fp32", 16) == 16


def test_a_small_network_is_not_tried(played: Played) -> None:
    session = SlowSession(played, 90.0, 2, heavy=False)
    assert prompt_batch(session, "graph", "fp32", 16) == 16 and not session.tried
