"""Retrieval side by side: this project's providers, the published loop, and the best mixes of libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.harness.errors import PeerUnavailable
from mclst.benchmarks.harness.measure import Samples, in_turns, ratio, spread
from mclst.benchmarks.retrieval.cases import Bank, Case, Source
from mclst.benchmarks.retrieval.peers import PEERS, Peer, Run
from mclst.benchmarks.roofline.retrieval_bound import Peaks, bound_s, retrieval_work
from mclst.kernels.definition.contract import ProviderError
from mclst.kernels.retriever import Retriever

F32 = NDArray[np.float32]
PUBLISHED = "published loop"
# Queries handed over at once, and different ones made; more than these are the same again, block after block.
_AT_ONCE, _DIFFERENT = 8192, 16384
_CHECKED = 48


class NothingToMeasure(ValueError):
    """None of the providers asked for runs here; the message says why."""


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
    done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Time `n` queries of `case` on data of `kind` by every contender, in turns: a JSON object, raw samples included.

    The first of `providers` that runs here is the one the others are compared with.
    Raises NothingToMeasure where none does.
    """
    source = Source(kind, case)
    bank, queries = source.bank(), source.queries(min(n, _DIFFERENT))
    ours, absent = _providers(providers, bank, case)
    if not ours:
        raise NothingToMeasure("; ".join(f"{entry['name']}: {entry['why']}" for entry in absent))
    others, absent_peers = _peers(peers, bank, case, threads)
    runs = {**ours, **others}
    timed = {peer.name: min(n, peer.most_queries or n) for peer in peers}
    took = in_turns(
        {name: _stream(run, queries, timed.get(name, n)) for name, run in runs.items()}, rounds, done=done
    )
    errors = _errors(runs, queries[:_CHECKED], bank, case)
    bounds = {"host": bound_s(retrieval_work(n, case.m, case.d, case.spec.k, case.genes), peaks)}
    if cuda_peaks is not None:
        bounds["cuda"] = bound_s(retrieval_work(n, case.m, case.d, case.spec.k, case.genes), cuda_peaks)
    scaled = {name: _scaled(took.samples[name], n / timed.get(name, n)) for name in runs}
    first = next(iter(ours))
    contenders = []
    for name, samples in scaled.items():
        bound = bounds["cuda" if _on_gpu(name) and "cuda" in bounds else "host"]
        contenders.append(
            {
                "name": name,
                "ours": name in ours,
                "timed_queries": timed.get(name, n),
                "wall_s": spread(samples.wall_s),
                "cpu_s": spread(samples.cpu_s),
                "fraction_of_bound": bound / float(np.median(samples.wall_s)),
                "error": errors[name],
                "wall_to_ours": ratio(samples.wall_s, scaled[first].wall_s),
                "cpu_to_ours": ratio(samples.cpu_s, scaled[first].cpu_s),
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
        "work": vars(retrieval_work(n, case.m, case.d, case.spec.k, case.genes)),
        "bound_s": bounds,
        "contenders": contenders,
        "absent": absent + absent_peers,
        "load": took.load,
        "summary": _summary(contenders, first),
    }


def _providers(names: Sequence[str], bank: Bank, case: Case) -> tuple[dict[str, Run], list[dict[str, str]]]:
    ready: dict[str, Run] = {}
    absent = []
    for name in names:
        try:
            retriever = Retriever(bank, case.spec, name)
        except ProviderError as error:
            absent.append({"name": f"mclst {name}", "why": str(error)})
            continue
        ready[f"mclst {name}"] = _expression(retriever)
    return ready, absent


def _expression(retriever: Retriever) -> Run:
    return lambda queries: retriever.aggregate(queries).expression


def _peers(
    peers: Sequence[Peer], bank: Bank, case: Case, threads: int
) -> tuple[dict[str, Run], list[dict[str, str]]]:
    ready: dict[str, Run] = {}
    absent = []
    for peer in peers:
        try:
            ready[peer.name] = peer.ready(bank, case.spec, threads)
        except PeerUnavailable as why:
            absent.append({"name": peer.name, "why": str(why)})
    return ready, absent


def _stream(run: Run, queries: F32, n: int) -> Callable[[], object]:
    def work() -> None:
        left = n
        while left > 0:
            for start in range(0, len(queries), _AT_ONCE):
                some = queries[start : start + min(_AT_ONCE, left)]
                run(some)
                left -= len(some)
                if left <= 0:
                    return

    return work


def _errors(runs: dict[str, Run], queries: F32, bank: Bank, case: Case) -> dict[str, float]:
    """Largest difference from the float64 definition, in units of the bank's largest expression."""
    wanted = Retriever(bank, case.spec, "reference").aggregate(queries).expression
    largest = float(np.abs(bank.expression).max())
    return {name: float(np.abs(run(queries) - wanted).max()) / largest for name, run in runs.items()}


def _scaled(samples: Samples, by: float) -> Samples:
    return Samples([s * by for s in samples.wall_s], [s * by for s in samples.cpu_s])


def _on_gpu(name: str) -> bool:
    return any(word in name for word in ("cuda", "gpu", "cuvs"))


def _summary(contenders: list[dict[str, Any]], first: str) -> dict[str, Any]:
    """How the first provider stands against the published loop and against the fastest library mix."""
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
