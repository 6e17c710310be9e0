"""The sentence that an evaluation begins with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mclst.evaluation.assessment import ALL, Against, Assessment

LEAK = "Training has seen something of this test, so the scores are too high for a new patient."

NOTHING = (
    "Nothing shows whether the map is better than no image at all: no training section is at hand; give "
    "--reference, a folder of them."
)


def verdicts(assessment: Assessment) -> list[str]:
    """One sentence per method: does its map beat every baseline? Then `LEAK`, if there is one.

    Maps that a baseline beats come first, then those that are not shown to beat all. A map beats a baseline
    if the 95 % interval of their difference lies above 0: in mean r over all genes, or in MSE where the
    baseline is constant and has no r.
    """
    methods = list(dict.fromkeys(row.method for row in assessment.against if row.kind == "baseline"))
    judged = [
        _verdict(name, [r for r in assessment.against if r.method == name and r.kind == "baseline"])
        for name in methods
    ]
    sentences = [sentence for _, sentence in sorted(judged, key=lambda item: item[0])]
    if not methods:
        sentences = [NOTHING]
    return sentences + ([LEAK] if assessment.leaking else [])


def _verdict(method: str, rows: Sequence[Against]) -> tuple[int, str]:
    """Return how good the verdict is, 0 the worst, and its sentence."""
    name = f"The map of {method}" if method else "The map"
    outcome = {
        kind: [r for r in rows if r.of_set[ALL].outcome == kind] for kind in ("worse", "not told apart")
    }
    ranked = sorted(rows, key=lambda row: -_strength(row))
    phrases = (("worse", "is worse than"), ("not told apart", "is not shown to be better than"))
    for rank, (kind, phrase) in enumerate(phrases):
        if outcome[kind]:
            best = next(row for row in ranked if row in outcome[kind])
            count = f" ({len(outcome[kind])} of {len(rows)} baselines)" if len(outcome[kind]) > 1 else ""
            baseline = f"the baseline “{best.other}”, which sees {best.sees}{count}"
            return rank, f"{name} {phrase} {baseline}: {_numbers(best)}"
    closest = f"the closest is “{ranked[0].other}”: {_numbers(ranked[0])}"
    return len(phrases), f"{name} beats all {len(rows)} baselines; {closest}"


def _strength(row: Against) -> float:
    """How strong a baseline is: by its r, and if it has none, below all others."""
    r = row.of_set[ALL].r_other
    return -2.0 if np.isnan(r) else r


def _numbers(row: Against) -> str:
    c = row.of_set[ALL]
    if np.isnan(c.r.value):
        return (
            f"MSE {c.mse_map:.3f} against {c.mse_other:.3f} (95 % interval of the gain "
            f"{_signed(c.mse.low)} to {_signed(c.mse.high)})."
        )
    return (
        f"mean r {c.r_map:.3f} against {c.r_other:.3f} (difference {_signed(c.r.value)}, 95 % interval "
        f"{_signed(c.r.low)} to {_signed(c.r.high)})."
    )


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
