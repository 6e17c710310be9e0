"""Two documents of the same benchmark: how many times longer each contender takes in the second, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_RESAMPLES = 4000
_FEWEST = 3


class NotComparable(ValueError):
    """Documents that cannot be held against each other; the message says why."""


@dataclass(frozen=True)
class Change:
    """A contender's time in the second run over that in the first.

    ratio: of the medians over rounds. low95, high95: its bootstrapped 95 % interval; the rounds of either run are
    resampled by themselves. rounds: of the first and of the second run.
    """

    what: str
    ratio: float
    low95: float
    high95: float
    rounds: tuple[int, int]

    def slower(self, tolerance: float) -> bool:
        """Whether it is a regression: more than `tolerance` slower, and slower at all beyond doubt."""
        return self.ratio > 1 + tolerance and self.low95 > 1


def change(what: str, before: Sequence[float], after: Sequence[float], seed: int = 0) -> Change:
    """Compare seconds by round; raises NotComparable where a run has fewer than three rounds."""
    a, b = (np.asarray(samples, dtype=np.float64) for samples in (before, after))
    if min(len(a), len(b)) < _FEWEST:
        raise NotComparable(
            f"{what} has {min(len(a), len(b))} rounds; {_FEWEST} are needed, so measure with more"
        )
    rng = np.random.default_rng(seed)
    medians = [np.median(rng.choice(x, size=(_RESAMPLES, len(x))), axis=1) for x in (a, b)]
    low, high = np.percentile(medians[1] / medians[0], [2.5, 97.5])
    return Change(what, float(np.median(b) / np.median(a)), float(low), float(high), (len(a), len(b)))


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[list[Change], list[str]]:
    """The changes of every contender both documents have, and the names that one of them lacks.

    Raises NotComparable where they are of different benchmarks, of none that this can read, or share nothing.
    """
    kinds = [str(document.get("schema")) for document in (before, after)]
    if kinds[0] != kinds[1]:
        raise NotComparable(
            f"the first is {kinds[0]} and the second {kinds[1]}; compare runs of the same benchmark"
        )
    if kinds[0] not in _ROUNDS:
        raise NotComparable(f"{kinds[0]} is none of {', '.join(_ROUNDS)}; give documents of these")
    try:
        one, two = (_ROUNDS[kinds[0]](document) for document in (before, after))
    except (KeyError, TypeError) as error:
        raise NotComparable(
            f"a document does not hold what {kinds[0]} says ({error}); measure again"
        ) from error
    shared = [what for what in one if what in two]
    if not shared:
        raise NotComparable("the two share no contender; compare runs with the same settings")
    alone = sorted(set(one) ^ set(two))
    return [change(what, one[what], two[what]) for what in shared], alone


def different_ground(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What else differs between the runs and may be the cause: machine, versions, bundle, a busy machine."""
    told = []
    for what, path in (
        ("processor", ("machine", "cpu")),
        ("cores", ("machine", "cores")),
        ("GPU", ("machine", "gpu")),
        ("commit", ("machine", "commit")),
        ("bundle", ("bundle", "sha256")),
        ("threads", ("settings", "threads")),
        ("tiles", ("settings", "tiles")),
    ):
        one, two = (_at(document, path) for document in (before, after))
        if one != two:
            told.append(f"{what}: {one} → {two}")
    versions = [document.get("machine", {}).get("versions", {}) for document in (before, after)]
    for name in sorted(set(versions[0]) | set(versions[1])):
        one, two = (found.get(name) for found in versions)
        if one != two:
            told.append(f"{name}: {one} → {two}")
    busy = [
        name for name, document in (("first", before), ("second", after)) if document.get("verdict") == "busy"
    ]
    return told + [f"the machine was busy in the {name} run" for name in busy]


def _at(document: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = document
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


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
    found = {
        f"batch {measured['batch']}: {entry['name']}": entry["samples"]["round_mean_s"]
        for measured in document["batches"]
        for entry in measured["results"]
    }
    offline = document["offline"]
    if offline is not None:
        found |= {f"offline: {entry['name']}": entry["samples"]["wall_s"] for entry in offline["results"]}
    return found


_ROUNDS = {
    "mclst-bench-retrieval/1": _of_retrieval,
    "mclst-bench-end-to-end/1": _of_end_to_end,
    "mclst-bench-latency/1": _of_latency,
}
"""By schema: seconds of every contender, round by round."""
