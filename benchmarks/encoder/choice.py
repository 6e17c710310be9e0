"""Is the choice of an encoder right? mclst-infer's own measuring beside the benchmark's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.encoder.session import DEFAULT_BATCH_SIZE
from mclst.runtime.inference.loaded_model import LoadedModel
from mclst.runtime.providers.candidates import ChoiceRequest
from mclst.runtime.providers.choice import EncoderChoice

SLOWER_BY_AT_MOST = 0.05
"""A choice is right within this share of the fastest."""


def compare_choice(
    bundle: Bundle, results: Sequence[Mapping[str, Any]], threads: int
) -> dict[str, Any] | None:
    """Choose as mclst-infer does on a machine it does not know, and judge it; see `judge_choice`.

    Nothing is tried where the benchmark measured a single setting of mclst.

    Parameters
    ----------
    bundle : Bundle
    results : sequence of mapping
        The benchmark's results, one per batch size.
    threads : int
        Of the processor.
    """
    of_batch = min(results, key=lambda result: abs(result["batch"] - DEFAULT_BATCH_SIZE))
    if sum(entry["ours"] for entry in of_batch["results"]) < 2:
        return None
    with tempfile.TemporaryDirectory(prefix="mclst-bench-") as folder:
        choice = choose_alone(bundle, threads, Path(folder))
    return judge_choice(choice, of_batch)


def choose_alone(bundle: Bundle, threads: int, cache: Path) -> EncoderChoice:
    """Choose as mclst-infer does once it has tried everything; cache: instead of the user's."""
    before = os.environ.get("MCLST_CACHE")
    os.environ["MCLST_CACHE"] = str(cache)
    try:
        request = ChoiceRequest("auto", "auto", DEFAULT_BATCH_SIZE, build=False)
        return LoadedModel(bundle, threads=threads).choose_encoder(request, _silent)
    finally:
        del os.environ["MCLST_CACHE"]
        if before is not None:
            os.environ["MCLST_CACHE"] = before


def judge_choice(choice: EncoderChoice, of_batch: Mapping[str, Any]) -> dict[str, Any] | None:
    """Compare a choice with what the benchmark measured of mclst's settings at one batch size.

    Returns
    -------
    dict or None
        See `mclst.benchmarks.schemas.latency.Choice`; None if the chosen one was not measured.
    """
    rates = {entry["name"]: entry["tiles_per_s"] for entry in of_batch["results"] if entry["ours"]}
    chosen = f"mclst {choice}"
    if chosen not in rates:
        return None
    fastest = max(rates, key=rates.__getitem__)
    slower_by = 1 - rates[chosen] / rates[fastest]
    return {
        "chosen": chosen,
        "fastest": fastest,
        "batch": of_batch["batch"],
        "tried": {f"mclst {timing}": timing.tiles_per_second for timing in choice.timings},
        "chosen_tiles_per_s": rates[chosen],
        "fastest_tiles_per_s": rates[fastest],
        "slower_by": slower_by,
        "within_limit": slower_by <= SLOWER_BY_AT_MOST,
    }


def _silent(text: str) -> None:
    """Say nothing."""
