"""Time retrieval side by side: mclst's providers, the published loop, and combinations of libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mclst.benchmarks.harness.measure import (
    PeerUnavailable,
    Rounds,
    Samples,
    paired_ratio,
    summarize,
    time_interleaved,
)
from mclst.benchmarks.retrieval.cases import Case
from mclst.benchmarks.retrieval.peers import PEERS, Peer, Run
from mclst.benchmarks.retrieval.synthetic import F32, Bank, Source
from mclst.benchmarks.roofline.retrieval_bound import Peaks, bound_s, retrieval_work
from mclst.kernels.definition.contract import ProviderError
from mclst.kernels.retriever import Retriever

PUBLISHED = "published loop"
# Queries per call, and distinct queries; a larger run repeats these block by block.
_CHUNK, _DISTINCT = 8192, 16384
_CHECKED = 48


class NothingToMeasure(ValueError):
    """None of the chosen providers runs here; the message says why."""


def measure(
    case: Case,
    kind: str,
    *,
    n: int,
    providers: Sequence[str],
    rounds: int,
    threads: int,
    peaks: Peaks,
    cuda_peaks: Peaks | None = None,
    peers: Sequence[Peer] = PEERS,
    on_round: Callable[[], object] = lambda: None,
    timer: Callable[..., Rounds] = time_interleaved,
) -> dict[str, Any]:
    """Time `n` queries of `case` on data of `kind` by every contender, interleaved.

    Parameters
    ----------
    providers : sequence of str
        Of mclst; the first that runs here is the reference of the ratios.
    peaks, cuda_peaks : Peaks
        Of the host, and of the device if there is one.
    peers : sequence of Peer
        Other libraries.
    on_round : callable
        Called after each round.
    timer : callable
        As `time_interleaved`.

    Returns
    -------
    dict
        JSON object with statistics and raw samples.

    Raises
    ------
    NothingToMeasure
        If no provider runs here.
    """
    source = Source(kind, case)
    bank, queries = source.bank(), source.queries(min(n, _DISTINCT))
    ours, unavailable = _open_providers(providers, bank, case)
    if not ours:
        raise NothingToMeasure("; ".join(f"{entry['name']}: {entry['why']}" for entry in unavailable))
    others, unavailable_peers = _open_peers(peers, bank, case, threads)
    runs = {**ours, **others}
    timed = {peer.name: min(n, peer.max_queries or n) for peer in peers}
    rounds_taken = timer(
        {name: stream(run, queries, timed.get(name, n)) for name, run in runs.items()},
        rounds,
        on_round=on_round,
    )
    errors = _errors(runs, queries[:_CHECKED], bank, case)
    work = retrieval_work(n, case.m, case.d, case.spec.k, case.genes)
    bounds = {"host": bound_s(work, peaks)}
    if cuda_peaks is not None:
        bounds["cuda"] = bound_s(work, cuda_peaks)
    scaled = {name: _scaled(rounds_taken.samples[name], n / timed.get(name, n)) for name in runs}
    first = next(iter(ours))
    contenders = []
    for name, samples in scaled.items():
        bound = bounds["cuda" if _on_gpu(name) and "cuda" in bounds else "host"]
        contenders.append(
            {
                "name": name,
                "ours": name in ours,
                "timed_queries": timed.get(name, n),
                "wall_s": summarize(samples.wall_s),
                "cpu_s": summarize(samples.cpu_s),
                "fraction_of_bound": bound / float(np.median(samples.wall_s)),
                "error": errors[name],
                "wall_to_ours": paired_ratio(samples.wall_s, scaled[first].wall_s),
                "cpu_to_ours": paired_ratio(samples.cpu_s, scaled[first].cpu_s),
                "samples": {"wall_s": samples.wall_s, "cpu_s": samples.cpu_s},
            }
        )
    return {
        "case": case.name,
        "data": kind,
        "shape": {"n": n, "m": case.m, "d": case.d, "k": case.spec.k, "genes": case.genes},
        "setting": {
            "rank": case.spec.rank,
            "distance": case.spec.distance,
            "weighting": case.spec.weighting,
        },
        "work": vars(work),
        "bound_s": bounds,
        "contenders": contenders,
        "absent": unavailable + unavailable_peers,
        "load": rounds_taken.load,
        "summary": _summary(contenders, first),
    }


def _open_providers(
    names: Sequence[str], bank: Bank, case: Case
) -> tuple[dict[str, Run], list[dict[str, str]]]:
    runs: dict[str, Run] = {}
    unavailable = []
    for name in names:
        try:
            retriever = Retriever(bank, case.spec, name)
        except ProviderError as error:
            unavailable.append({"name": f"mclst {name}", "why": str(error)})
            continue
        runs[f"mclst {name}"] = lambda queries, retriever=retriever: retriever.aggregate(queries).expression  # type: ignore[misc]
    return runs, unavailable


def _open_peers(
    peers: Sequence[Peer], bank: Bank, case: Case, threads: int
) -> tuple[dict[str, Run], list[dict[str, str]]]:
    runs: dict[str, Run] = {}
    unavailable = []
    for peer in peers:
        try:
            runs[peer.name] = peer.prepare(bank, case.spec, threads)
        except PeerUnavailable as error:
            unavailable.append({"name": peer.name, "why": str(error)})
    return runs, unavailable


def stream(run: Run, queries: F32, n: int, *, chunk: int = _CHUNK) -> Callable[[], object]:
    """Work that passes `n` queries to `run` in chunks, repeating `queries` as often as needed."""

    def work() -> None:
        remaining = n
        while remaining > 0:
            for start in range(0, len(queries), chunk):
                part = queries[start : start + min(chunk, remaining)]
                run(part)
                remaining -= len(part)
                if remaining <= 0:
                    return

    return work


def _errors(runs: dict[str, Run], queries: F32, bank: Bank, case: Case) -> dict[str, float]:
    """Largest difference from the float64 definition, relative to the bank's largest expression."""
    expected = Retriever(bank, case.spec, "reference").aggregate(queries).expression
    largest = float(np.abs(bank.expression).max())
    return {name: float(np.abs(run(queries) - expected).max()) / largest for name, run in runs.items()}


def _scaled(samples: Samples, factor: float) -> Samples:
    return Samples([s * factor for s in samples.wall_s], [s * factor for s in samples.cpu_s])


def _on_gpu(name: str) -> bool:
    return any(word in name for word in ("cuda", "gpu", "cuvs"))


def _summary(contenders: list[dict[str, Any]], first: str) -> dict[str, Any]:
    """Ratios of the published loop and of the fastest library combination to the first provider."""
    by_name = {entry["name"]: entry for entry in contenders}
    libraries = [entry for entry in contenders if not entry["ours"] and entry["name"] != PUBLISHED]
    best = min(libraries, key=lambda entry: entry["wall_to_ours"], default=None)
    published = by_name.get(PUBLISHED)
    return {
        "ours": first,
        "times_published_loop": published and published["wall_to_ours"],
        "times_published_loop_cpu": published and published["cpu_to_ours"],
        "best_library": best and best["name"],
        "times_best_library": best and best["wall_to_ours"],
        "times_best_library_cpu": min((entry["cpu_to_ours"] for entry in libraries), default=None),
    }
