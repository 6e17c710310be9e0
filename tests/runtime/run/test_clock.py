"""The clock of a run's stages, against a clock that is turned by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_slides import write_layout

from mclst.runtime import progress
from mclst.runtime.progress import Clock
from mclst.runtime.slide.open import open_slide


class Hands:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    turned = Hands()
    monkeypatch.setattr(progress, "time", turned)
    return turned


def test_a_stage_inside_another_counts_once(hands: Hands) -> None:
    clock = Clock(write=1.0)
    with clock.stage("write"):
        hands.now += 2
        with clock.stage("draw"):
            hands.now += 5
            assert clock.snapshot() == {"write": 3.0, "draw": 5.0}
            with clock.stage("write"):
                hands.now += 7
        hands.now += 11
        assert clock.snapshot()["write"] == 21.0
        hands.now += 13
    hands.now += 100
    assert dict(clock) == {"write": 34.0, "draw": 5.0}


def test_a_stage_that_fails_is_counted_too(hands: Hands) -> None:
    clock = Clock()
    with pytest.raises(OSError), clock.stage("write"):
        hands.now += 3
        raise OSError
    with clock.stage("read"):
        hands.now += 1
    assert clock == {"write": 3.0, "read": 1.0}


def test_a_slide_tells_how_long_its_bytes_took(tmp_path: Path) -> None:
    path, _ = write_layout(tmp_path, "tiled deflate")
    with open_slide(path) as slide:
        assert slide.seconds_file == 0.0
        slide.read(0, 0, 100, 100)
        seconds = slide.seconds_file
        assert seconds is not None and seconds > 0
    assert slide.seconds_file == seconds
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "picture.png")
    with open_slide(tmp_path / "picture.png") as picture:
        assert picture.seconds_file is not None and 0 < picture.seconds_file <= picture.seconds_opening
