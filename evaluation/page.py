"""An evaluation as a page: scores, figures, the ranking of the genes, what the figures of merit mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from mclst.evaluation.evaluate import DEFINITIONS, Evaluation
from mclst.runtime.report.page import elements

MEANING = {
    "genes": "The surest genes, measured and predicted, and r of all genes",
    "coexpression": "Gene-gene correlation, measured and predicted",
    "domains": "Spatial domains",
    "upset": "Predicted genes in common",
    "venn": "Predicted genes in common",
}


def eval_page(
    found: Evaluation, columns: Mapping[str, str], figures: Iterable[tuple[str, str, bytes]], kind: str
) -> bytes:
    """The page. columns: of the table of scores, field → heading. figures: (what, method, content), of `kind` png or svg."""
    several = len(found.methods) > 1
    scores = [
        {head: row.get(name) for name, head in columns.items() if name != "method" or several}
        for row in found.table().to_dict(orient="records")
    ]
    shown = [head for head in scores[0] if any(pd.notna(row[head]) for row in scores)]
    pairs = [section.pair for method in found.methods for section in method.sections]
    drawn = [elements.figure(content, _caption(what, method), kind=kind) for what, method, content in figures]
    ranking = [
        {str(name): value for name, value in row.items() if name != "method" or several}
        for row in found.genes()
        .rename(columns={"minus_log10_p": "-log10 p", "pcc": "mean r"})
        .to_dict("records")
    ]
    main = [
        elements.section(
            "Scores",
            elements.table([{head: row[head] for head in shown} for row in scores], label="Scores"),
            elements.details("What the figures of merit mean", *map(elements.paragraph, DEFINITIONS)),
        ),
        elements.section("Pictures", *drawn) if drawn else "",
        elements.section(
            "Genes, the surest first",
            elements.paragraph(_predicted(found)),
            elements.table(ranking, label="Genes", sortable=True),
        ),
    ]
    sections = list(dict.fromkeys(pair.section for pair in pairs))
    told = [
        f"{', '.join(sections[:6])}{' …' if len(sections) > 6 else ''}",
        f"expression {pairs[0].normalisation}",
    ]
    title = "Predicted beside measured" + (": " + ", ".join(m.name for m in found.methods) if several else "")
    return elements.page(title, "  ·  ".join(told), "".join(main), scripts=[elements.script("tables.js")])


def _caption(what: str, method: str) -> str:
    return MEANING[what] + (f" ({method})" if method else "")


def _predicted(found: Evaluation) -> str:
    counts = [
        f"{len(method.predicted):,} genes{f' of {method.name}' if method.name else ''}"
        for method in found.methods
    ]
    return f"{', '.join(counts)} have r > 0 and −log10 p ≥ {found.least:.2f} and count as predicted."
