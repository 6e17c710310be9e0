"""Time runs from slide to map, interleaved, beside the published notebook."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mclst.benchmarks.contenders.base import F32
from mclst.benchmarks.contenders.inputs import expression_difference
from mclst.benchmarks.contenders.published_baseline import PublishedNotebook
from mclst.benchmarks.contenders.slide_runs import PUBLISHED, BaselineRun, MclstRun
from mclst.benchmarks.harness.measure import paired_ratio, summarize, summarize_runs, time_interleaved
from mclst.benchmarks.harness.stages import Stages
from mclst.runtime.bundle.bundle import Bundle
from mclst.sections.section import Spots


def measure(
    bundle: Bundle,
    slide: Path,
    spots: Spots,
    *,
    settings: Mapping[str, dict[str, Any]],
    notebook: PublishedNotebook | None,
    rounds: int,
    on_round: Callable[[], object] = lambda: None,
) -> tuple[dict[str, Any], dict[str, F32]]:
    """Run every setting, and the notebook, `rounds` times, interleaved, after an uncounted round.

    settings: options of `predict` by contender; ratios are to the first. Returns, by contender: seconds of
    whole runs, tiles per second of them and of the stream (first tile to last expression), stages, and
    difference of the expression from the first's; and the expressions float32 [n, G].
    """
    tiles = len(spots)
    with tempfile.TemporaryDirectory(prefix="mclst-bench-") as temporary:
        runs: dict[str, MclstRun | BaselineRun] = {}
        for name, options in settings.items():
            runs[name] = MclstRun(bundle, slide, spots, Path(temporary), **options)
        if notebook is not None:
            runs[PUBLISHED] = BaselineRun(notebook, slide, spots)
        timed = time_interleaved(runs, rounds, on_round=on_round)
        expression = {name: run.expression() for name, run in runs.items()}
    first = next(iter(settings))
    contenders = []
    for name, run in runs.items():
        samples = timed.samples[name]
        streams = run.streams[-rounds:]
        entry = {
            "name": name,
            "ours": isinstance(run, MclstRun),
            "provider": run.provider,
            **summarize_runs(samples, timed.samples[first], tiles),
            "stream_tiles_per_s": summarize([tiles / s for s in streams]),
            "stream_to_first": paired_ratio(streams, runs[first].streams[-rounds:]),
            "stages": median_run(run.stages[-rounds:]).summary(),
            "equal_to_first": expression_difference(expression[first], expression[name]),
            "samples": {"wall_s": samples.wall_s, "cpu_s": samples.cpu_s, "stream_s": streams},
        }
        contenders.append(entry)
    return {"tiles": tiles, "first": first, "contenders": contenders, "load": timed.load}, expression


def median_run(stages: Sequence[Stages]) -> Stages:
    """Stages of the run with the (lower) median wall time; medians by stage would not add up."""
    return sorted(stages, key=lambda run: run.wall_s)[(len(stages) - 1) // 2]
