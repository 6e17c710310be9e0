"""What README and docs say of accuracy and trust: it is what the committed measurements say."""

from __future__ import annotations

import csv
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
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


def measured(name: str) -> Any:
    """A committed result document."""
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


@functools.cache
def maps_of(name: str) -> dict[str, dict[str, Any]]:
    """Rows of mclst-bench trust, 90 % intervals, by HEAD-SECTION."""
    rows = measured(name)["results"]
    return {row["file"].removesuffix("-90.h5ad"): row for row in rows if row["nominal"] == 0.9}


HEADS, OTHERS = "trust-heads-c2-c5.json", "trust-other-heads-c2-c5.json"
SECTIONS = ("C2", "C3", "C4", "C5")


def test_the_default_ridge_beside_one_alpha_is_as_trust_says() -> None:
    """Where it is worse: the r of reliable genes, coverage, and the ranking of spots, on some sections."""

    def worse(name: str) -> set[str]:
        return {section for section, (new, old) in pairs.items() if value(new, name) < value(old, name)}

    def value(row: dict[str, Any], name: str) -> float:
        ranked = next(own for own in row["abstention"] if own["ranking"] == "expected_error")
        return float(ranked["spearman"] if name == "spearman" else row[name])

    pairs = {
        section: (maps_of(HEADS)[f"ridge-{section}"], maps_of(OTHERS)[f"ridge.one-alpha-{section}"])
        for section in SECTIONS
    }
    assert not worse("reached_r") and all(new["reliable"] > old["reliable"] for new, old in pairs.values())
    assert worse("reliable_r") == {"C2", "C4"} and not worse("other_r")
    assert worse("spearman") == {"C2", "C5"}
    less = {s: old["covered"] - new["covered"] for s, (new, old) in pairs.items()}
    assert {s for s, points in less.items() if points > 0.001} == {"C2", "C3"} and max(less.values()) < 0.006


def test_leaving_out_the_worst_spots_lowers_the_error() -> None:
    for head in (maps_of(HEADS), maps_of("trust-c4-mclstexp.json")):
        for name, row in head.items():
            risk = next(own["risk"] for own in row["abstention"] if own["ranking"] == "expected_error")
            falls = [first < second for first, second in itertools.pairwise(risk)]
            assert all(falls[name.startswith("mclSTExp") :]), name
    distance = [
        own["spearman"]
        for row in maps_of(HEADS).values()
        for own in row["abstention"]
        if own["ranking"] == "distance_percentile"
    ]
    assert max(distance) < 0


def test_the_mean_r_of_both_ridges_is_that_of_fit() -> None:
    old, new = (
        np.mean([rows[f"{name}-{section}"]["reached_r"] for section in SECTIONS])
        for rows, name in ((maps_of(OTHERS), "ridge.one-alpha"), (maps_of(HEADS), "ridge"))
    )
    assert f"raises r from {old:.3f} to {new:.3f}" in (ROOT / "docs" / "fit.md").read_text()


def test_what_changed_tiles_cost_is_as_trust_says() -> None:
    entries = measured("robustness-c4-ridge.json")["results"]["perturbations"]
    r = {name: entry["scores"]["pcc_acg"] for name, entry in entries.items()}
    assert sorted(r, key=r.__getitem__)[:2] == ["blur 1.5 px", "scanner color"]
    assert {name for name, entry in entries.items() if entry["trust"]["colors"]} == {"light −20 %"}
    assert entries["light −20 %"]["trust"]["colors"] == "the background"
    assert max(entries, key=lambda name: entries[name]["trust"]["covered"]) == "blur 1.5 px"
    assert all(entry["trust"]["spearman"] > 0.5 for entry in entries.values())
    other = measured("robustness-c4-mclstexp.json")["results"]["perturbations"]
    stain = ("hematoxylin +25 %", "pale stain −30 %", "light −20 %", "scanner color")
    assert all(entries[name]["change"] < 0.7 * other[name]["change"] for name in stain)
