"""Evaluation as an HTML page: scores, figures, gene ranking, definitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from mclst.evaluation.evaluate import DEFINITIONS, Evaluation
from mclst.runtime.report.page import elements

CAPTIONS = {
    "genes": "The most significant genes, measured and predicted, and r of all genes",
    "coexpression": "Gene-gene correlation, measured and predicted",
    "domains": "Spatial domains",
    "upset": "Predicted genes in common",
    "venn": "Predicted genes in common",
}
"""Captions by kind of figure."""


def evaluation_page(
    evaluation: Evaluation, columns: Mapping[str, str], figures: Iterable[tuple[str, str, bytes]], kind: str
) -> bytes:
    """Render the page. columns: field → heading of the scores. figures: (name, method, png or svg)."""
    compared = len(evaluation.methods) > 1
    scores = [
        {heading: row.get(name) for name, heading in columns.items() if name != "method" or compared}
        for row in evaluation.table().to_dict(orient="records")
    ]
    headings = [heading for heading in scores[0] if any(pd.notna(row[heading]) for row in scores)]
    blocks = [
        elements.figure(content, _caption(name, method), kind=kind) for name, method, content in figures
    ]
    ranking = [
        {str(name): value for name, value in row.items() if name != "method" or compared}
        for row in evaluation.genes()
        .rename(columns={"minus_log10_p": "-log10 p", "pcc": "mean r"})
        .to_dict("records")
    ]
    main = [
        elements.section(
            "Scores",
            elements.table([{name: row[name] for name in headings} for row in scores], label="Scores"),
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


def _caption(name: str, method: str) -> str:
    return CAPTIONS[name] + (f" ({method})" if method else "")


def _predicted_genes(evaluation: Evaluation) -> str:
    counts = [
        f"{len(method.predicted):,} genes{f' of {method.name}' if method.name else ''}"
        for method in evaluation.methods
    ]
    return f"{', '.join(counts)} count as predicted: r > 0 and −log10 p ≥ {evaluation.threshold:.2f}."
