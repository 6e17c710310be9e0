"""Summary of an evaluation on stderr, and the headings that it shares with the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mclst.evaluation.assessment import ALL, Assessment
from mclst.evaluation.evaluate import Evaluation, SectionResult
from mclst.evaluation.headings import BASELINES, DEFINITIONS, RESAMPLED, SCORES, SEVERITY, STRUCTURE
from mclst.evaluation.leakage import Leak
from mclst.evaluation.verdict import verdicts
from mclst.runtime.console import say

N_LISTED_GENES = 10
TEXT = frozenset({"method", "section", "against", "sees", "outcome", "name"})


def columns_of(rows: Sequence[Mapping[Any, Any]], headings: Mapping[str, str]) -> list[str]:
    """Columns of `headings` with a value in some row; "method" only if there are several."""
    several = len({row.get("method") for row in rows}) > 1
    return [
        name
        for name in headings
        if any(not _is_missing(row.get(name)) for row in rows) and (several or name != "method")
    ]


def print_table(
    rows: Sequence[Mapping[Any, Any]], headings: Mapping[str, str], *, quiet: bool, digits: int = 4
) -> None:
    """Print rows in aligned columns; a missing value is a dash."""
    columns = columns_of(rows, headings)
    cells = [[headings[name] for name in columns]]
    cells += [[_cell(row.get(name), digits) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        text = "  ".join(
            cell.ljust(width) if name in TEXT else cell.rjust(width)
            for cell, width, name in zip(line, widths, columns, strict=True)
        )
        say(f"  {text.rstrip()}", quiet=quiet)


def comparison_rows(assessment: Assessment, gene_set: str = ALL) -> list[dict[str, Any]]:
    """Rows of the comparison over one gene set, with intervals as text."""
    table = assessment.table()
    rows = table[table["gene_set"] == gene_set].to_dict(orient="records")
    for row in rows:
        for name in ("pcc", "mse"):
            value, low, high = (row[f"{name}_{part}"] for part in ("difference", "low", "high"))
            row[f"{name}_interval"] = None if _is_missing(value) else _interval(value, low, high)
        better = row["genes_better"]
        row["genes_better"] = None if _is_missing(better) else f"{better:.0%}"
    return [{str(name): value for name, value in row.items()} for row in rows]


def training_line(assessment: Assessment) -> str:
    """How many training sections there are, and where their names come from."""
    training = assessment.training
    used = (
        f", {len(training.sections)} of them at hand" if len(training.sections) < len(training.names) else ""
    )
    return f"{len(training.names)} training sections{used}, from {training.how}."


def gene_set_rows(assessment: Assessment) -> list[dict[str, Any]]:
    """Mean r over each gene set: a row per map, then per baseline."""
    maps: dict[str, dict[str, Any]] = {}
    others: dict[str, dict[str, Any]] = {}
    for row in assessment.against:
        for name, own in row.of_set.items():
            maps.setdefault(row.method, {"name": row.method or "map"})[name] = own.r_map
            if row.kind == "baseline":
                others.setdefault(row.other, {"name": row.other})[name] = own.r_other
    return [*maps.values(), *others.values()]


def print_leaks(leaks: Sequence[Leak], *, quiet: bool) -> None:
    """Print what training has seen of the test; leaks in red, even if quiet."""
    for leak in leaks:
        is_leak = leak.severity == "leak"
        text = f"  {SEVERITY[leak.severity]}: {leak.section}: {leak.text}"
        say(text, quiet=quiet and not is_leak, style="bold red" if is_leak else None)


def print_assessment(assessment: Assessment, *, quiet: bool) -> None:
    """Print the verdict, the comparison with the baselines, and the scores by gene set."""
    say("", quiet=quiet)
    for sentence in verdicts(assessment):
        say(f"  {sentence}", quiet=quiet)
    say(f"  {training_line(assessment)}", quiet=quiet)
    rows = comparison_rows(assessment)
    if rows:
        say("", quiet=quiet)
        shown = {name: heading for name, heading in BASELINES.items() if name != "sees"}
        print_table(rows, shown, quiet=quiet, digits=3)
        resampled = rows[0]["resampled"]
        say(f"  95 % intervals: {RESAMPLED[resampled]}", quiet=quiet)
    for baseline in assessment.missing:
        say(f"  Note: baseline “{baseline.name}” is {baseline.made_of}", quiet=quiet)
    if len(assessment.sets) > 1:
        say("", quiet=quiet)
        headings = {"name": "mean r of", **{name: name for name in assessment.sets}}
        print_table(gene_set_rows(assessment), headings, quiet=quiet, digits=3)
        for name, text in assessment.definitions.items():
            say(f"  {name:<8} {text}", quiet=quiet)
    say("", quiet=quiet)


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
        for note in pair.notes:
            say(f"  Note: {note}", quiet=quiet)
        if math.isnan(section.score.pcc_heg):
            say(f"  Note: {pair.section}: PCC (HEG) is undefined, as published: one of its 50 genes has no r")


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _cell(value: Any, digits: int = 4) -> str:
    if _is_missing(value):
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
