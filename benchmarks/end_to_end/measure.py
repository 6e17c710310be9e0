"""A slide and its spots to a map, beside the published way, in turns: stages, overlap, what bounds it, cold start."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mclst.benchmarks.contenders.published_baseline import PublishedNotebook
from mclst.benchmarks.contenders.slide_runs import F32, PUBLISHED, BaselineRun, MclstRun
from mclst.benchmarks.harness.measure import in_turns, ratio, spread
from mclst.benchmarks.harness.stages import Stages
from mclst.export.parity.compare import compare_expression
from mclst.runtime.bundle.bundle import Bundle
from mclst.sections.section import Spots


def measure(
    bundle: Bundle,
    slide: Path,
    spots: Spots,
    *,
    settings: Sequence[dict[str, Any]],
    notebook: PublishedNotebook | None,
    rounds: int,
    done: Callable[[], object] = lambda: None,
) -> tuple[dict[str, Any], dict[str, F32]]:
    """Run every setting of `predict`, and the notebook, `rounds` times in turns after one round that is not counted.

    The first setting is the one the others are compared with; "name" among a setting's fields is its name. Of each
    contender: wall and CPU seconds of whole runs, tiles a second of them and of the stream alone (tiles to expression,
    with slide and encoder open), its stages, and how far its expression is from the first's. Beside it, by name, the
    expression float32 [n, G] itself.
    """
    tiles = len(spots)
    with tempfile.TemporaryDirectory(prefix="mclst-bench-") as temporary:
        runs: dict[str, MclstRun | BaselineRun] = {}
        for setting in settings:
            how = {key: value for key, value in setting.items() if key != "name"}
            runs[setting["name"]] = MclstRun(bundle, slide, spots, Path(temporary), **how)
        if notebook is not None:
            runs[PUBLISHED] = BaselineRun(notebook, slide, spots)
        took = in_turns(runs, rounds, done=done)
        expression = {name: run.expression() for name, run in runs.items()}
    first = settings[0]["name"]
    contenders = []
    for name, run in runs.items():
        samples = took.samples[name]
        streams = run.streams[-rounds:]
        entry = {
            "name": name,
            "ours": isinstance(run, MclstRun),
            "provider": run.provider,
            "wall_s": spread(samples.wall_s),
            "cpu_s": spread(samples.cpu_s),
            "tiles_per_s": spread([tiles / s for s in samples.wall_s]),
            "stream_tiles_per_s": spread([tiles / s for s in streams]),
            "wall_to_first": ratio(samples.wall_s, took.samples[first].wall_s),
            "cpu_to_first": ratio(samples.cpu_s, took.samples[first].cpu_s),
            "stream_to_first": ratio(streams, runs[first].streams[-rounds:]),
            "stages": _middle(run.stages[-rounds:]).described(),
            "equal_to_first": _compared(expression[first], expression[name]),
            "samples": {"wall_s": samples.wall_s, "cpu_s": samples.cpu_s, "stream_s": streams},
        }
        contenders.append(entry)
    return {"tiles": tiles, "first": first, "contenders": contenders, "load": took.load}, expression


def _compared(first: F32, found: F32) -> dict[str, Any]:
    """How far expression is from the first's, over spots whose tile both could read."""
    both = np.isfinite(first).all(axis=1) & np.isfinite(found).all(axis=1)
    return {"spots": int(both.sum()), **compare_expression(first[both], found[both])}


def _middle(stages: Sequence[Stages]) -> Stages:
    """Of several runs the one whose wall time is the (lower) median: its stages belong together, as medians of each do not."""
    return sorted(stages, key=lambda run: run.wall_s)[(len(stages) - 1) // 2]
