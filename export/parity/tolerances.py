"""What an export in another precision must keep, in the task's own terms; without it there is no bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from mclst.runtime.errors import ParityError


@dataclass(frozen=True)
class Gate:
    """Least figures against the checkpoint, None where nothing is asked.

    cosine: of the worst tile's embedding. overlap: mean share of the 50 nearest reference spots in common. pearson:
    mean over genes of r between the expressions. change: of the mean r per gene against what was measured at the
    tiles' spots, where that is known.
    """

    cosine: float | None = None
    overlap: float | None = None
    pearson: float | None = None
    change: float | None = None


NO_LIMITS = Gate()
GATES = {
    "fp16": Gate(cosine=0.999, overlap=0.98, pearson=0.998, change=0.002),
    "bf16": Gate(cosine=0.99, overlap=0.93, pearson=0.995, change=0.005),
    "int8": Gate(cosine=0.98, overlap=0.85, pearson=0.985, change=0.01),
}


def gate_for(precision: str, given: Gate) -> Gate:
    """The precision's gate with the limits that are `given` in place of its own.

    `change` follows a given `pearson` as 1 - r. fp32 has no limits of its own here: its tolerance is narrower.
    """
    limits = {name: value for name, value in asdict(given).items() if value is not None}
    if given.pearson is not None:
        limits.setdefault("change", 1 - given.pearson)
    return replace(GATES.get(precision, NO_LIMITS), **limits)


def judge(precision: str, found: Mapping[str, Any], gate: Gate, tiles: str) -> dict[str, Any]:
    """`found` (of `mclst.export.parity.compare`) with the gate it passed; raises ParityError naming the figure that fails.

    A figure that is not defined (no bank, one expression throughout, nothing measured) is left to the others; tiles:
    how many and from where, for the sentence.
    """
    for what, (part, name), option, limit, sign in (
        ("the least cosine of an embedding", ("embedding", "cosine_min"), "--min-cosine", gate.cosine, 1),
        ("the overlap of the 50 nearest", ("neighbours", "overlap_at_50"), "--min-overlap", gate.overlap, 1),
        (
            "the mean Pearson r per gene",
            ("expression", "pearson_per_gene_mean"),
            "--min-pearson",
            gate.pearson,
            1,
        ),
        (
            "the change of the mean Pearson r per gene against the measured expression",
            ("measured", "change"),
            "--min-pearson",
            gate.change,
            -1,
        ),
    ):
        value = found.get(part, {}).get(name)
        if value is None or limit is None:
            continue
        value = float(value) if sign > 0 else abs(float(value))
        if sign * value < sign * limit:
            cure = f"lower {option}"
            if precision != "fp32":
                cure = f"leave --precision {precision} out, or {cure}"
            raise ParityError(
                f"in {precision}, {what} on {tiles} is {value:.7g}, where at {'least' if sign > 0 else 'most'} "
                f"{limit:.7g} is asked for; {cure}; no bundle is written"
            )
    return {**found, "gate": asdict(gate), "passed": True}
