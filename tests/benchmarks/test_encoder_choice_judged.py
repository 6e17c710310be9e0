"""Is what mclst-infer chooses within 5 % of the fastest that was measured? On recorded and made-up speeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mclst.benchmarks.encoder.choice import SLOWER_BY_AT_MOST, judge_choice
from mclst.runtime.choices import PRECISIONS
from mclst.runtime.providers.choice import EncoderChoice
from mclst.runtime.providers.timings import Candidate, fastest
from mclst.runtime.providers.trials import Trial, measure

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
RECORDED = [
    of_batch
    for path in sorted(RESULTS.glob("latency-*.json"))
    for of_batch in json.loads(path.read_text())["batches"]
]


def choose(speeds: Mapping[Candidate, float], *, slow_tries: int = 0) -> EncoderChoice:
    """Choose as mclst-infer does on a machine of these speeds; the first tries of each take ten times as
    long.
    """
    now, calls = [0.0], dict.fromkeys(speeds, 0)

    def opened(name: Candidate) -> Any:
        def encode(tiles: np.ndarray) -> None:
            now[0] += len(tiles) / speeds[name] * (10 if calls[name] < slow_tries else 1)
            calls[name] += 1

        return SimpleNamespace(encode=encode) if name in speeds else None

    def fewer(name: Candidate) -> Candidate | None:
        return (*name[:2], 1) if name[2] is None else None

    tiles = np.zeros((16, 1, 1, 3), np.uint8)
    names = [name for name in speeds if name[2] is None]
    timings, _ = measure(names, Trial(opened, fewer, tiles, 2, clock=lambda: now[0]), {})
    chosen = fastest(timings)
    return EncoderChoice(*chosen.name, tuple(timings))


def document(speeds: Mapping[Candidate, float]) -> dict[str, Any]:
    """What the benchmark says of one batch size; a peer is faster than all, and no matter."""
    ours = [
        {"name": f"mclst {EncoderChoice(*name)}", "ours": True, "tiles_per_s": speed}
        for name, speed in speeds.items()
    ]
    return {"batch": 16, "results": [{"name": "another", "ours": False, "tiles_per_s": 1e9}, *ours]}


@pytest.mark.parametrize("of_batch", RECORDED, ids=lambda of_batch: str(of_batch["batch"]))
@pytest.mark.parametrize("slow_tries", [0, 2])
def test_on_recorded_speeds_the_choice_is_right(of_batch: dict[str, Any], slow_tries: int) -> None:
    """The uncounted first call and one more are slow for each."""
    speeds: dict[Candidate, float] = {}
    for entry in of_batch["results"]:
        if entry["ours"]:
            words = entry["name"].replace(",", "").split()
            speeds[words[1], words[2], int(words[3]) if len(words) > 3 else None] = entry["tiles_per_s"]
    judged = judge_choice(choose(speeds, slow_tries=slow_tries), of_batch)
    assert judged is not None and judged["within_limit"]
    assert judged["fastest_tiles_per_s"] == max(speeds.values())
    assert judged["slower_by"] == 1 - judged["chosen_tiles_per_s"] / max(speeds.values())


NAMES = st.tuples(st.sampled_from(("cpu", "openvino")), st.sampled_from(PRECISIONS), st.none())


@given(st.dictionaries(NAMES, st.floats(0.1, 900), min_size=2))
def test_on_a_machine_of_any_speeds_the_choice_is_right(speeds: dict[Candidate, float]) -> None:
    judged = judge_choice(choose(speeds), document(speeds))
    assert judged is not None and judged["slower_by"] <= SLOWER_BY_AT_MOST and judged["within_limit"]


def test_a_wrong_choice_is_seen() -> None:
    speeds: dict[Candidate, float] = {
        ("cpu", "fp32", None): 94,
        ("openvino", "int8", None): 90,
        ("openvino", "int8", 1): 100,
    }
    judged = judge_choice(EncoderChoice("cpu", "fp32"), document(speeds))
    assert (
        judged is not None
        and not judged["within_limit"]
        and judged["fastest"] == "mclst openvino int8, 1 lane"
    )
    assert judged["slower_by"] == pytest.approx(0.06)
    right = judge_choice(EncoderChoice("openvino", "int8", 1), document(speeds))
    assert right is not None and right["within_limit"] and right["slower_by"] == 0
    assert judge_choice(EncoderChoice("cpu", "bf16"), document(speeds)) is None, "it was not measured"
