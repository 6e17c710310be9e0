"""Tables of docs/reproduction.md: what `mclst-bench accuracy` measured of fitted heads."""

from __future__ import annotations

import json
from pathlib import Path

from mclst.benchmarks.reporting.recipe_tables import markdown_table

RESULTS = ("accuracy-heads-c2-c5.json", "accuracy-heads-views-c2-c5.json")
HEAD = ("head", "fields of view", "PCC (ACG)", "PCC (HEG)", "MSE")
NAMES = {
    "ridge": "ridge",
    "blend": "blend",
    "knn": "k nearest",
    "pca-ridge": "pca-ridge, the HEST benchmark's",
}


def heads_table(folder: Path) -> str:
    """Markdown: mean and standard deviation over the sections, a row per head and field of view."""
    rows = []
    for name in RESULTS:
        document = json.loads((folder / name).read_text())
        by_head = {row["value"]: row for row in document["table"]}
        views = ",".join(f"{view:g}" for view in document["views"])
        context = f" --context {document['context_um']:g}" if document["context_um"] else ""
        fields = "one" if views == "1" else f"`--views {views}{context}`"
        for head, title in NAMES.items():
            row = by_head[head]
            scores = [f"{row[key]:.3f} ± {row[f'{key}_sd']:.3f}" for key in ("pcc_acg", "pcc_heg", "mse")]
            rows.append((title, fields, *scores))
    return markdown_table(HEAD, rows)
