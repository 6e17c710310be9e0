"""Summary of an evaluation on stderr, and the headings that it shares with the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mclst.evaluation.evaluate import Evaluation, SectionResult
from mclst.evaluation.headings import DEFINITIONS, SCORES, STRUCTURE
from mclst.runtime.console import say

N_LISTED_GENES = 10
TEXT = frozenset({"method", "section", "baseline", "set"})


def columns_of(rows: Sequence[Mapping[Any, Any]], headings: Mapping[str, str]) -> list[str]:
    """Columns of `headings` with a value in some row; "method" only if there are several."""
    several = len({row.get("method") for row in rows}) > 1
    return [
        name
        for name in headings
        if any(not _is_missing(row.get(name)) for row in rows) and (several or name != "method")
    ]


def print_table(rows: Sequence[Mapping[Any, Any]], headings: Mapping[str, str], *, quiet: bool) -> None:
    """Print rows in aligned columns; a missing value is a dash."""
    columns = columns_of(rows, headings)
    cells = [[headings[name] for name in columns]]
    cells += [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        text = "  ".join(
            cell.ljust(width) if name in TEXT else cell.rjust(width)
            for cell, width, name in zip(line, widths, columns, strict=True)
        )
        say(f"  {text.rstrip()}", quiet=quiet)


def print_summary(evaluation: Evaluation, *, quiet: bool) -> None:
    """Print scores, structure, the most significant genes, what was left out, and the definitions."""
    rows = evaluation.table().to_dict(orient="records")
    print_table(rows, SCORES, quiet=quiet)
    say("", quiet=quiet)
    print_table(rows, STRUCTURE, quiet=quiet)
    say("", quiet=quiet)
    compared = len(evaluation.methods) > 1
    for method in evaluation.methods:
        top = method.ranked.head(N_LISTED_GENES)
        listed = zip(top["gene"], top["minus_log10_p"], top["minus_log10_p_spatial"], strict=True)
        genes = ", ".join(f"{gene} {plain:.1f} ({_cell(own, 1)})" for gene, plain, own in listed)
        label = f" of {method.name}" if compared else ""
        say(f"  most significant genes{label}, -log10 p as published (corrected): {genes}", quiet=quiet)
        criterion = f"r > 0 and -log10 p ≥ {evaluation.threshold:.2f}, as published"
        say(f"  {len(method.predicted)} genes{label} with {criterion}", quiet=quiet)
        if method.ranked["fdr"].notna().any():
            say(f"  {method.significant} genes{label} with r > 0 and a corrected FDR ≤ 5 %", quiet=quiet)
        _print_exclusions(method.sections, quiet=quiet)
    for line in DEFINITIONS:
        say(f"  {line}", quiet=quiet)


def _print_exclusions(sections: Iterable[SectionResult], *, quiet: bool) -> None:
    for section in sections:
        pair = section.pair
        counts = [
            (pair.only_in_map, "spots of the map are not in the truth"),
            (pair.only_in_truth, "spots of the truth are not in the map"),
            (pair.without_tile, "spots have no prediction"),
            (pair.left_out_genes, "genes of the map were not measured"),
            (section.score.undefined, "genes are constant in map or truth and have no r"),
        ]
        exclusions = "; ".join(f"{count} {description}" for count, description in counts if count)
        if exclusions:
            say(f"  Note: {pair.section}: {exclusions}; they are excluded", quiet=quiet)
        if math.isnan(section.score.pcc_heg):
            say(f"  Note: {pair.section}: PCC (HEG) is undefined, as published: one of its 50 genes has no r")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _cell(value: Any, digits: int = 4) -> str:
    if _is_missing(value):
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
