"""Files of an evaluation: their paths and contents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from mclst.evaluation.assessment import Assessment
from mclst.evaluation.evaluate import Evaluation
from mclst.evaluation.figures import draw_coexpression, draw_domains, draw_genes
from mclst.evaluation.metrics.overlap import VENN_SETS, membership
from mclst.evaluation.overlap_figures import draw_upset, draw_venn
from mclst.runtime.report.figures.style import figure_bytes

Outputs = dict[tuple[str, str], Path]
"""Paths by content and method ("" for all methods)."""


def output_paths(
    start: Path, figures: str, methods: Sequence[str], *, with_domains: bool, with_baselines: bool
) -> Outputs:
    """Paths of all files, whose names begin with `start`. figures: "png", "svg" or "none"."""
    endings = {("table", ""): ".csv", ("ranking", ""): ".genes.csv", ("page", ""): ".html"}
    if with_baselines:
        endings["baselines", ""] = ".baselines.csv"
    if len(methods) > 1:
        endings["membership", ""] = ".overlap.csv"
    if figures != "none":
        for method in methods:
            tag = f".{method}" if len(methods) > 1 else ""
            endings["genes", method] = f"{tag}.{figures}"
            endings["coexpression", method] = f"{tag}.coexpression.{figures}"
            if with_domains:
                endings["domains", method] = f"{tag}.domains.{figures}"
        if len(methods) > 1:
            endings["upset", ""] = f".overlap.{figures}"
        if len(methods) in VENN_SETS:
            endings["venn", ""] = f".venn.{figures}"
    return {key: start.with_name(start.name + ending) for key, ending in endings.items()}


def render_outputs(
    evaluation: Evaluation, assessment: Assessment | None, outputs: Outputs, figures: str
) -> Iterator[tuple[str, str, bytes]]:
    """Yield content name, method and bytes of every file but the page."""
    methods = {method.name: method for method in evaluation.methods}
    sets = {method.name: method.predicted for method in evaluation.methods}
    renderers: dict[str, Callable[[str], pd.DataFrame | Figure]] = {
        "table": lambda name: evaluation.table(),
        "ranking": lambda name: evaluation.genes(),
        "baselines": lambda name: pd.DataFrame() if assessment is None else assessment.table(),
        "membership": lambda name: membership(sets),
        "genes": lambda name: draw_genes(methods[name]),
        "coexpression": lambda name: draw_coexpression(methods[name]),
        "domains": lambda name: draw_domains(methods[name].sections),
        "upset": lambda name: draw_upset(evaluation.overlap, list(sets)),
        "venn": lambda name: draw_venn(evaluation.overlap, list(sets)),
    }
    for content, method in outputs:
        if content == "page":
            continue
        rendered = renderers[content](method)
        if isinstance(rendered, Figure):
            yield content, method, figure_bytes(rendered, figures)
        else:
            yield content, method, rendered.to_csv(index=False, float_format="%.6g").encode()
