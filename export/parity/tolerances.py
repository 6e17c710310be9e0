"""Gates that an export must pass in each precision, in terms of the task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from mclst.runtime.errors import ParityError


@dataclass(frozen=True)
class Gate:
    """Limits on the difference from the checkpoint; None for no limit.

    Parameters
    ----------
    cosine : float, optional
        Least cosine of a tile's embeddings.
    overlap : float, optional
        Least mean share of the 50 nearest reference spots in common.
    pearson : float, optional
        Least mean over genes of Pearson r between the expressions.
    nrmse : float, optional
        Largest root mean squared error of the expressions as a share of their spread over the tiles, which
        sees a shift that r does not.
    change : float, optional
        Largest change of the mean r per gene against the measured expression of the tiles' spots, if known.
    """

    cosine: float | None = None
    overlap: float | None = None
    pearson: float | None = None
    nrmse: float | None = None
    change: float | None = None


NO_LIMITS = Gate()
GATES = {
    "fp16": Gate(cosine=0.999, overlap=0.98, pearson=0.998, nrmse=0.13, change=0.002),
    "bf16": Gate(cosine=0.99, overlap=0.93, pearson=0.995, nrmse=0.2, change=0.005),
    "int8": Gate(cosine=0.98, overlap=0.85, pearson=0.985, nrmse=0.35, change=0.01),
}
LEAST_TILES = 8
"""Tiles that judge a reduced precision: r over fewer says little, and over one nothing."""


def gate_for(precision: str, overrides: Gate) -> Gate:
    """Gate of a precision with `overrides`; `nrmse` and `change` follow an overridden `pearson`.

    nrmse: 2 √(1 - r²), twice the share that the best line of correlation r leaves. change: 1 - r. fp32 has no
    gate here, since its `Tolerance` is narrower.
    """
    limits = {name: value for name, value in asdict(overrides).items() if value is not None}
    if overrides.pearson is not None:
        limits.setdefault("nrmse", 2 * math.sqrt(max(0.0, 1 - overrides.pearson**2)))
        limits.setdefault("change", 1 - overrides.pearson)
    return replace(GATES.get(precision, NO_LIMITS), **limits)


def check_gate(precision: str, figures: Mapping[str, Any], gate: Gate, tiles: str) -> dict[str, Any]:
    """Return `figures` (of `mclst.export.parity.compare`) with the limits that they passed.

    A cosine limits where neighbors depend on it. Without a bank only distances do, whose percentiles hardly
    move, so r and the error judge, and r must be defined. Other undefined figures
    (constant expression, nothing measured) pass. `tiles` says how many and from where. Raises ParityError
    naming the first figure that fails.
    """
    if "neighbours" not in figures:
        gate = replace(gate, cosine=None, overlap=None)
    if "measured" not in figures:
        gate = replace(gate, change=None)
    for title, (part, name), option, limit, sign in (
        ("the least cosine of an embedding", ("embedding", "cosine_min"), "--min-cosine", gate.cosine, 1),
        ("the overlap of the 50 nearest", ("neighbours", "overlap_at_50"), "--min-overlap", gate.overlap, 1),
        (
            "the mean Pearson r per gene",
            ("expression", "pearson_per_gene_mean"),
            "--min-pearson",
            gate.pearson,
            1,
        ),
        ("the error as a share of the spread", ("expression", "nrmse"), "--min-pearson", gate.nrmse, -1),
        (
            "the change of the mean Pearson r per gene against the measured expression",
            ("measured", "change"),
            "--min-pearson",
            gate.change,
            -1,
        ),
    ):
        value = figures.get(part, {}).get(name)
        judges = name == "pearson_per_gene_mean" and "neighbours" not in figures
        if limit is None or (value is None and not judges):
            continue
        cure = f"lower {option}"
        if precision != "fp32":
            cure = f"leave --precision {precision} out, or {cure}"
        if value is None:
            raise ParityError(
                f"in {precision}, {title} on {tiles} is undefined, for no gene varies; {cure}; no bundle is "
                "written"
            )
        value = float(value) if sign > 0 else abs(float(value))
        if sign * value < sign * limit:
            raise ParityError(
                f"in {precision}, {title} on {tiles} is {value:.7g}, where at "
                f"{'least' if sign > 0 else 'most'} {limit:.7g} is required; {cure}; no bundle is written"
            )
    return {**figures, "gate": asdict(gate), "passed": True}


def check_count(precision: str, count: int, tiles: str) -> None:
    """Raise ParityError if the tiles are too few to judge a reduced precision by."""
    if count < LEAST_TILES:
        raise ParityError(
            f"{tiles} are too few to judge {precision} by, which takes {LEAST_TILES}; raise --parity-tiles, "
            f"give more sections or a slide with --calibration, or leave --precision {precision} out"
        )
