"""Evaluation as an HTML page: scores, figures, gene ranking, definitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mclst.evaluation.assessment import Assessment
from mclst.evaluation.evaluate import Evaluation
from mclst.evaluation.headings import (
    BASELINES,
    DEFINITIONS,
    GENE_HEADINGS,
    RESAMPLED,
    SCORES,
    SEVERITY,
    STRUCTURE,
)
from mclst.evaluation.summary import columns_of, comparison_rows, gene_set_rows, training_line
from mclst.evaluation.trust import CURVE, TrustScore
from mclst.evaluation.trust import DEFINITIONS as trust_definitions
from mclst.evaluation.trust import HEADINGS as trust_headings
from mclst.evaluation.verdict import verdicts
from mclst.runtime.report.page import elements

CAPTIONS = {
    "genes": "The most significant genes, measured and predicted, and r of all genes",
    "coexpression": "Gene-gene correlation, measured and predicted",
    "domains": "Spatial domains",
    "upset": "Predicted genes in common",
    "venn": "Predicted genes in common",
}
"""Captions by kind of figure."""
FIFTH_NAMES = ("lowest expected r", "second fifth", "third fifth", "fourth fifth", "highest expected r")


def evaluation_page(
    evaluation: Evaluation,
    assessment: Assessment | None,
    figures: Iterable[tuple[str, str, bytes]],
    kind: str,
    trust: Sequence[TrustScore] = (),
) -> bytes:
    """Render the page: verdict, comparison, scores, trust, genes, maps. figures: (name, method, image)."""
    compared = len(evaluation.methods) > 1
    rows = evaluation.table().to_dict(orient="records")
    blocks = [
        elements.figure(content, _caption(name, method), kind=kind) for name, method, content in figures
    ]
    ranking = [
        {str(name): value for name, value in row.items() if name != "method" or compared}
        for row in evaluation.genes().rename(columns=GENE_HEADINGS).to_dict("records")
    ]
    main = [
        "" if assessment is None else _verdict(assessment),
        "" if assessment is None else _comparison(assessment),
        elements.section(
            "Scores",
            elements.table(_with_headings(rows, SCORES), label="Scores"),
            elements.table(_with_headings(rows, STRUCTURE), label="Structure"),
            elements.details("Definitions", *map(elements.paragraph, DEFINITIONS)),
        ),
        _trust(trust),
        elements.section(
            "Genes by significance",
            elements.paragraph(_predicted_genes(evaluation)),
            elements.table(ranking, label="Genes", sortable=True),
        ),
        elements.section("Maps", *blocks) if blocks else "",
    ]
    pairs = [section.pair for method in evaluation.methods for section in method.sections]
    sections = list(dict.fromkeys(pair.section for pair in pairs))
    listing = f"{', '.join(sections[:6])}{' …' if len(sections) > 6 else ''}"
    subtitle = f"{listing}  ·  expression {pairs[0].normalization}"
    methods = ", ".join(method.name for method in evaluation.methods)
    title = "Predicted and measured expression" + (f": {methods}" if compared else "")
    return elements.page(title, subtitle, "".join(main), scripts=[elements.script("tables.js")])


def _trust(scores: Sequence[TrustScore]) -> str:
    """What the maps' own figures are worth; nothing where they have none."""
    rows = [score.row() for score in scores]
    curves = [
        {
            "Section": score.section,
            "Ranked by": curve.ranking,
            **{f"{kept:.0%}": float(risk) for kept, risk in zip(CURVE, curve.risk, strict=True)},
            "AURC": curve.aurc,
            "Random": curve.random,
            "Perfect": curve.oracle,
        }
        for score in scores
        for curve in score.abstention
    ]
    fifths = [
        {"Section": score.section, "Genes": FIFTH_NAMES[number], "Expected r": expected, "Reached r": reached}
        for score in scores
        if len(score.fifths) == len(FIFTH_NAMES)
        for number, (expected, reached) in enumerate(score.fifths)
    ]
    if not curves:
        return ""
    return elements.section(
        "What the map says of itself",
        elements.table(_with_headings(rows, trust_headings), label="Trust"),
        elements.details(
            "Mean squared error of the spots that are kept, by what ranks them",
            elements.table(curves, label="Risk and coverage"),
        ),
        elements.details(
            "Expected r against reached r, by fifths of the genes",
            elements.table(fifths, label="Expected and reached r"),
        )
        if fifths
        else "",
        elements.details("Definitions", *map(elements.paragraph, trust_definitions)),
    )


def _verdict(assessment: Assessment) -> str:
    """Leaks, which no number may precede; then the verdict, and what else may be wrong with it."""
    notices: dict[str, list[str]] = {"leak": [], "note": []}
    for leak in assessment.leaks:
        text = f"{SEVERITY[leak.severity]}: {leak.section}: {leak.text}"
        notices[leak.severity].append(elements.notice(text, alarm=leak.severity == "leak"))
    sentences = map(elements.lead, verdicts(assessment))
    how = elements.paragraph(training_line(assessment))
    return elements.section("Verdict", *notices["leak"], *sentences, *notices["note"], how)


def _comparison(assessment: Assessment) -> str:
    rows = comparison_rows(assessment)
    if not rows:
        return ""
    sets = {"name": "mean r of", **{name: name for name in assessment.sets}}
    made_of = [
        {"baseline": r.other, "made of": r.made_of} for r in assessment.against if r.kind == "baseline"
    ]
    made_of += [{"baseline": b.name, "made of": b.made_of} for b in assessment.missing]
    return elements.section(
        "Against predictions that see less",
        elements.table(_with_headings(rows, BASELINES), label="Baselines"),
        elements.paragraph(f"Over all genes. 95 % intervals: {RESAMPLED[rows[0]['resampled']]}."),
        elements.table(_with_headings(gene_set_rows(assessment), sets), label="Gene sets"),
        elements.details(
            "Gene sets and baselines",
            *(elements.paragraph(f"{name}: {text}") for name, text in assessment.definitions.items()),
            elements.table(made_of, label="Made of"),
        ),
    )


def _with_headings(rows: Sequence[Mapping[Any, Any]], headings: Mapping[str, str]) -> list[dict[str, Any]]:
    columns = columns_of(rows, headings)
    return [{headings[name]: row.get(name) for name in columns} for row in rows]


def _caption(name: str, method: str) -> str:
    return CAPTIONS[name] + (f" ({method})" if method else "")


def _predicted_genes(evaluation: Evaluation) -> str:
    parts = []
    for method in evaluation.methods:
        label = f" of {method.name}" if method.name else ""
        parts.append(
            f"{len(method.predicted):,} genes{label} count as predicted as published (r > 0, −log10 p ≥ "
            f"{evaluation.threshold:.2f}, spots taken as independent). {method.significant:,} have r > 0 and "
            "a false discovery rate of at most 5 %, corrected for spatial autocorrelation."
        )
    return " ".join(parts)
