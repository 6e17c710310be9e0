"""Compare two documents of the same benchmark: ratio of times by contender, with its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_RESAMPLES = 4000
_MIN_ROUNDS = 3


class NotComparable(ValueError):
    """Documents that cannot be compared; the message says why."""


@dataclass(frozen=True)
class Change:
    """A contender's time in the second run over that in the first.

    ratio: of the medians over rounds. low95, high95: its 95 % bootstrap interval, each run resampled
    separately. rounds: number of rounds in the first and in the second run.
    """

    what: str
    ratio: float
    low95: float
    high95: float
    rounds: tuple[int, int]

    def slower(self, tolerance: float) -> bool:
        """Whether it is a regression: more than `tolerance` slower, with an interval above 1."""
        return self.ratio > 1 + tolerance and self.low95 > 1


def compare_samples(what: str, before: Sequence[float], after: Sequence[float], seed: int = 0) -> Change:
    """Compare seconds by round; NotComparable where a run has fewer than three rounds."""
    a, b = (np.asarray(samples, dtype=np.float64) for samples in (before, after))
    if min(len(a), len(b)) < _MIN_ROUNDS:
        raise NotComparable(
            f"{what} has {min(len(a), len(b))} rounds; {_MIN_ROUNDS} are needed, so measure with more"
        )
    rng = np.random.default_rng(seed)
    medians = [np.median(rng.choice(x, size=(_RESAMPLES, len(x))), axis=1) for x in (a, b)]
    low, high = np.percentile(medians[1] / medians[0], [2.5, 97.5])
    return Change(what, float(np.median(b) / np.median(a)), float(low), float(high), (len(a), len(b)))


def compare_documents(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[list[Change], list[str]]:
    """Changes of the contenders that both documents have, and names of those in one only.

    Raises NotComparable if the benchmarks differ, are not supported, or share no contender.
    """
    kinds = [str(document.get("schema")) for document in (before, after)]
    if kinds[0] != kinds[1]:
        raise NotComparable(
            f"the first is {kinds[0]} and the second {kinds[1]}; compare runs of the same benchmark"
        )
    if kinds[0] not in _ROUNDS:
        raise NotComparable(f"{kinds[0]} is none of {', '.join(_ROUNDS)}; give documents of these")
    try:
        first, second = (_ROUNDS[kinds[0]](document) for document in (before, after))
    except (KeyError, TypeError) as error:
        raise NotComparable(
            f"a document does not hold what {kinds[0]} requires ({error}); measure again"
        ) from error
    shared = [what for what in first if what in second]
    if not shared:
        raise NotComparable("the two share no contender; compare runs with the same settings")
    changes = [compare_samples(what, first[what], second[what]) for what in shared]
    return changes, sorted(set(first) ^ set(second))


def environment_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Differences in machine, versions, bundle and settings that may explain a change."""
    differences = []
    for name, path in (
        ("processor", ("machine", "cpu")),
        ("cores", ("machine", "cores")),
        ("GPU", ("machine", "gpu")),
        ("commit", ("machine", "commit")),
        ("bundle", ("bundle", "sha256")),
        ("threads", ("settings", "threads")),
        ("tiles", ("settings", "tiles")),
    ):
        first, second = (_get(document, path) for document in (before, after))
        if first != second:
            differences.append(f"{name}: {first} → {second}")
    versions = [document.get("machine", {}).get("versions", {}) for document in (before, after)]
    for name in sorted(set(versions[0]) | set(versions[1])):
        first, second = (installed.get(name) for installed in versions)
        if first != second:
            differences.append(f"{name}: {first} → {second}")
    busy = [
        name for name, document in (("first", before), ("second", after)) if document.get("verdict") == "busy"
    ]
    return differences + [f"the machine was busy in the {name} run" for name in busy]


def _get(document: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = document
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _of_retrieval(document: Mapping[str, Any]) -> dict[str, list[float]]:
    return {
        f"{result['case']}, {result['data']}, N {result['shape']['n']}: {entry['name']}": entry["samples"][
            "wall_s"
        ]
        for result in document["results"]
        for entry in result["contenders"]
    }


def _of_end_to_end(document: Mapping[str, Any]) -> dict[str, list[float]]:
    return {entry["name"]: entry["samples"]["wall_s"] for entry in document["result"]["contenders"]}


def _of_latency(document: Mapping[str, Any]) -> dict[str, list[float]]:
    rounds = {
        f"batch {measured['batch']}: {entry['name']}": entry["samples"]["round_mean_s"]
        for measured in document["batches"]
        for entry in measured["results"]
    }
    offline = document["offline"]
    if offline is not None:
        rounds |= {f"offline: {entry['name']}": entry["samples"]["wall_s"] for entry in offline["results"]}
    return rounds


def _of_command(document: Mapping[str, Any]) -> dict[str, list[float]]:
    return {
        f"page cache {cache}: {entry['name']}": entry["samples"]["wall_s"]
        for cache, result in document["results"].items()
        for entry in result["contenders"]
    }


_ROUNDS = {
    "mclst-bench-command/1": _of_command,
    "mclst-bench-retrieval/1": _of_retrieval,
    "mclst-bench-end-to-end/1": _of_end_to_end,
    "mclst-bench-latency/1": _of_latency,
}
"""Extract seconds by contender and round, by schema."""
