"""Is the choice of an encoder right? mclst-infer's own measuring beside the benchmark's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.encoder.session import DEFAULT_BATCH_SIZE
from mclst.runtime.inference.encoder_choice import ChoiceRequest
from mclst.runtime.inference.loaded_model import LoadedModel


def compare_choice(
    bundle: Bundle, results: Sequence[Mapping[str, Any]], threads: int
) -> dict[str, Any] | None:
    """Choose as mclst-infer does on a machine it does not know, and compare.

    Parameters
    ----------
    bundle : Bundle
    results : sequence of mapping
        The benchmark's results, one per batch size.
    threads : int
        Of the processor.

    Returns
    -------
    dict or None
        See `mclst.benchmarks.schemas.latency.Choice`; None if the benchmark did not measure two settings of
        mclst, or not what was chosen.
    """
    of_batch = min(results, key=lambda result: abs(result["batch"] - DEFAULT_BATCH_SIZE))
    rates = {entry["name"]: entry["tiles_per_s"] for entry in of_batch["results"] if entry["ours"]}
    if len(rates) < 2:
        return None
    with _own_cache():
        request = ChoiceRequest("auto", "auto", DEFAULT_BATCH_SIZE, threads)
        choice = LoadedModel(bundle, threads=threads).choose_encoder(
            request.provider, request.precision, request.batch, build=False, measure=True, notify=_silent
        )
    chosen = f"mclst {choice.provider} {choice.precision}"
    if chosen not in rates:
        return None
    fastest = max(rates, key=rates.__getitem__)
    return {
        "chosen": chosen,
        "fastest": fastest,
        "batch": of_batch["batch"],
        "tried": {f"mclst {t.provider} {t.precision}": t.tiles_per_second for t in choice.timings},
        "chosen_tiles_per_s": rates[chosen],
        "fastest_tiles_per_s": rates[fastest],
        "slower_by": 1 - rates[chosen] / rates[fastest],
    }


def _silent(text: str) -> None:
    """Say nothing."""


@contextmanager
def _own_cache() -> Iterator[None]:
    """An empty user's cache, in which nothing was measured yet."""
    before = os.environ.get("MCLST_CACHE")
    with tempfile.TemporaryDirectory(prefix="mclst-bench-") as folder:
        os.environ["MCLST_CACHE"] = folder
        try:
            yield
        finally:
            del os.environ["MCLST_CACHE"]
            if before is not None:
                os.environ["MCLST_CACHE"] = before
