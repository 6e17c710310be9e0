"""Evaluation as an HTML page: scores, figures, gene ranking, definitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mclst.evaluation.evaluate import Evaluation
from mclst.evaluation.headings import DEFINITIONS, GENE_HEADINGS, SCORES, STRUCTURE
from mclst.evaluation.summary import columns_of
from mclst.runtime.report.page import elements

CAPTIONS = {
    "genes": "The most significant genes, measured and predicted, and r of all genes",
    "coexpression": "Gene-gene correlation, measured and predicted",
    "domains": "Spatial domains",
    "upset": "Predicted genes in common",
    "venn": "Predicted genes in common",
}
"""Captions by kind of figure."""


def evaluation_page(evaluation: Evaluation, figures: Iterable[tuple[str, str, bytes]], kind: str) -> bytes:
    """Render the page. figures: (name, method, png or svg)."""
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
        elements.section(
            "Scores",
            elements.table(_with_headings(rows, SCORES), label="Scores"),
            elements.table(_with_headings(rows, STRUCTURE), label="Structure"),
            elements.details("Definitions", *map(elements.paragraph, DEFINITIONS)),
        ),
        elements.section("Figures", *blocks) if blocks else "",
        elements.section(
            "Genes by significance",
            elements.paragraph(_predicted_genes(evaluation)),
            elements.table(ranking, label="Genes", sortable=True),
        ),
    ]
    pairs = [section.pair for method in evaluation.methods for section in method.sections]
    sections = list(dict.fromkeys(pair.section for pair in pairs))
    listing = f"{', '.join(sections[:6])}{' …' if len(sections) > 6 else ''}"
    subtitle = f"{listing}  ·  expression {pairs[0].normalization}"
    methods = ", ".join(method.name for method in evaluation.methods)
    title = "Predicted and measured expression" + (f": {methods}" if compared else "")
    return elements.page(title, subtitle, "".join(main), scripts=[elements.script("tables.js")])


def _with_headings(rows: Sequence[Mapping[Any, Any]], headings: Mapping[str, str]) -> list[dict[str, Any]]:
    columns = columns_of(rows, headings)
    return [{headings[name]: row.get(name) for name in columns} for row in rows]


def _caption(name: str, method: str) -> str:
    return CAPTIONS[name] + (f" ({method})" if method else "")


def _predicted_genes(evaluation: Evaluation) -> str:
    counts = [
        f"{len(method.predicted):,} genes{f' of {method.name}' if method.name else ''}"
        for method in evaluation.methods
    ]
    return f"{', '.join(counts)} count as predicted: r > 0 and −log10 p ≥ {evaluation.threshold:.2f}."
