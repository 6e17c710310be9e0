"""Scores of section C4 in README and docs/reproduction.md: they are those of the committed evaluation."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def rows_of(name: str) -> list[dict[str, str]]:
    """Rows of a committed table of mclst-eval."""
    with (ROOT / "benchmarks" / "results" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def row_of(text: str, title: str, after: str) -> list[str]:
    """The numbers of a table's row, by its first cell."""
    table = text[text.index(after) :].split("\n\n")[0]
    line = next(line for line in table.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip().replace("−", "-") for cell in line.strip("| ").split(" | ")][1:]


MAPS = {
    "mclSTExp, the checkpoint": "mclSTExp",
    "EfficientNet-Lite0, ridge": "ridge",
    "EfficientNet-Lite0, kNN (k 50)": "kNN",
    "EfficientNet-Lite0, blend": "blend",
    "EfficientNet-Lite0, pca-ridge": "pca-ridge",
    "EfficientNet-Lite0, ridge, `--views 0.5,1,2 --context 300`": "views",
    "EfficientNet-Lite0, ridge of one α": "ridge-one-alpha",
    "EfficientNet-Lite0, ridge of one α, `--views 0.5,1,2 --context 300`": "views-one-alpha",
}
SETS = ("all", "HVG-50", "HVG-200", "SVG-50")


@pytest.mark.parametrize("title", MAPS)
def test_the_scores_of_c4_are_those_of_the_committed_evaluation(title: str) -> None:
    text = (ROOT / "docs" / "reproduction.md").read_text()
    of = {
        row["gene_set"]: row
        for row in rows_of("c4.eval.baselines.csv")
        if row["method"] == MAPS[title] and row["against"] == "stain and nuclei"
    }
    scores = [f"{float(of[name]['pcc']):.3f}" for name in SETS]
    assert row_of(text, title, "| prediction of C4 | made from |")[1:] == [
        *scores,
        f"{float(of['all']['mse']):.3f}",
    ]


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("*stain and nuclei*", "stain and nuclei"),
        ("*nearest spots*, 50 by position", "nearest spots"),
        ("*smooth field*, width 0.12 of the tissue", "smooth field"),
    ],
)
def test_the_baselines_of_c4_are_those_of_the_committed_evaluation(title: str, name: str) -> None:
    text = (ROOT / "docs" / "reproduction.md").read_text()
    of = {
        row["gene_set"]: row
        for row in rows_of("c4.eval.baselines.csv")
        if row["method"] == "mclSTExp" and row["against"] == name
    }
    scores = [f"{float(of[gene_set]['pcc_against']):.3f}" for gene_set in SETS]
    assert row_of(text, title, "| prediction of C4 | made from |")[1:] == [
        *scores,
        f"{float(of['all']['mse_against']):.3f}",
    ]
    if name == "stain and nuclei":
        assert f"reach r {scores[0]}" in (ROOT / "README.md").read_text()
