"""Tables of docs/trust.md, docs/evaluation.md and docs/reproduction.md from the runs that measured them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mclst.benchmarks.reporting.recipe_tables import markdown_table

HEADS, OTHER_HEADS = "trust-heads-c2-c5.json", "trust-other-heads-c2-c5.json"
NETWORK = "trust-c4-mclstexp.json"
CHANGED = {"ridge": "robustness-c4-ridge.json", "mclSTExp": "robustness-c4-mclstexp.json"}
NULLS, SCORES = "nulls.json", "c4.eval.csv"
KEPT = (1.0, 0.7, 0.5, 0.3, 0.1)
TITLES = {"knn": "kNN", "knn.similarity": "kNN, by similarity", "ridge.one-alpha": "ridge, one α"}
NO_VALUE = "–"


def heads_trust_table(folder: Path) -> str:
    """Coverage, reliable genes and ranking of spots: a row per head and section left out."""
    head = (
        "head", "held out", "80 % intervals hold", "90 % hold", "outside", "reliable genes",
        "r of reliable, others", "genes above `low_r`", "rank correlation of expected and true error",
    )  # fmt: skip
    rows = []
    for name in (HEADS, NETWORK, OTHER_HEADS):
        levels = _by_level(folder / name)
        for (title, section), row in levels[90].items():
            narrow = levels.get(80, {}).get((title, section))
            rows.append(
                (
                    title,
                    section,
                    NO_VALUE if narrow is None else f"{narrow['covered']:.3f}",
                    f"{row['covered']:.3f}",
                    _percent(row["outside"], 0),
                    str(row["reliable"]),
                    f"{_number(row['reliable_r'])}, {_number(row['other_r'])}",
                    _percent(row["above_low_r"], 0),
                    _number(_ranking(row, "expected_error").get("spearman"), 2),
                )
            )
    return markdown_table(head, rows)


def abstention_table(folder: Path) -> str:
    """Error of the spots that are left when the worst by `expected_error` are: a row per map."""
    rows = []
    for name in (HEADS, NETWORK):
        for (title, section), row in _by_level(folder / name)[90].items():
            ranked = _ranking(row, "expected_error")
            risk = dict(zip(ranked["kept"], ranked["risk"], strict=True))
            others = (
                _ranking(row, other).get("spearman") for other in ("distance_percentile", "nearest_distance")
            )
            rows.append(
                (title, section, *(f"{risk[share]:.2f}" for share in KEPT), *(_number(r, 2) for r in others))
            )
    shares = (f"{_percent(share, 0)} kept" for share in KEPT)
    return markdown_table(("head", "held out", *shares, "rank r: distance", "`nearest_distance`"), rows)


def fifths_table(folder: Path) -> str:
    """Expected and reached r of ridge, by fifths of the genes."""
    head = ("held out", *(f"{name} fifth" for name in ("lowest", "second", "third", "fourth", "highest")))
    rows = [
        (section, *(f"{expected:.3f}, {reached:.3f}" for expected, reached in row["fifths"]))
        for (title, section), row in _by_level(folder / HEADS)[90].items()
        if title == "ridge"
    ]
    return markdown_table(head, rows)


def changed_trust_table(folder: Path) -> str:
    """What a change of the tiles makes of scores, intervals and the verdict: ridge on C4."""
    head = (
        "change of C4", "outside", "90 % intervals hold", "r of all genes", "r of reliable, others", "MSE",
        "rank correlation of expected and true error", "the verdict's colors",
    )  # fmt: skip
    rows = []
    for name, entry in _entries(folder / CHANGED["ridge"]).items():
        trust, scores = entry["trust"], entry["scores"]
        rows.append(
            (
                "none" if name == "as it is" else name,
                _percent(trust["outside"], 0),
                f"{trust['covered']:.3f}",
                f"{scores['pcc_acg']:.3f}",
                f"{trust['reliable_r']:.3f}, {trust['other_r']:.3f}",
                f"{scores['mse']:.3f}",
                _number(trust["spearman"], 2),
                f"differ: {trust['colors']}" if trust["colors"] else "like theirs",
            )
        )
    return markdown_table(head, rows)


def changed_scores_table(folder: Path) -> str:
    """What a change of the tiles makes of the map of C4: the checkpoint and a ridge."""
    entries = {name: _entries(folder / file) for name, file in CHANGED.items()}
    rows = []
    for change in entries["ridge"]:
        own = (entries[name][change] for name in ("mclSTExp", "ridge"))
        cells = [
            (
                f"{e['change']:.2f}",
                f"{e['r']:.3f}",
                f"{e['scores']['pcc_acg']:.3f}, {e['scores']['pcc_heg']:.3f}",
            )
            for e in own
        ]
        rows.append((change, *cells[0], *cells[1]))
    head = [f"{name}: {what}" for name in ("mclSTExp", "ridge") for what in ("change", "r", "PCC (ACG, HEG)")]
    return markdown_table(("", *head), rows)


def p_values_table(folder: Path) -> str:
    """How often p < 0.05 for independent fields."""
    document = json.loads((folder / NULLS).read_text())
    places = list(dict.fromkeys(own["spots"] for own in document["p_values"]))
    by = {(own["length"], own["noise"], own["spots"]): own for own in document["p_values"]}
    rows = []
    for length, noise in dict.fromkeys((length, noise) for length, noise, _ in by):
        title = f"{length:g}" + (" (white)" if not length else "") + (", half of it noise" if noise else "")
        shares = [by[length, noise, place][how] for place in places for how in ("published", "corrected")]
        rows.append((title, *(_percent(share) for share in shares)))
    counts = [next(own["count"] for own in document["p_values"] if own["spots"] == place) for place in places]
    titles = [
        f"{'disc' if place == 'disc' else 'C4'}, {count} spots"
        for place, count in zip(places, counts, strict=True)
    ]
    head = [f"{title}: {how}" for title in titles for how in ("published", "corrected")]
    return markdown_table(("length", *head), rows)


def intervals_table(folder: Path) -> str:
    """How often the interval of the difference of two equally good maps misses 0."""
    document = json.loads((folder / NULLS).read_text())
    rows = [
        (
            f"{own['length']:g}",
            _percent(own["missed"]),
            f"{_percent(own['least'])} to {_percent(own['most'])}",
        )
        for own in document["intervals"]
    ]
    return markdown_table(("length", "95 % intervals that miss 0", "95 % interval of that"), rows)


def structure_table(folder: Path) -> str:
    """Structure and significance of the maps of C4, of the committed table of mclst-eval."""
    with (folder / SCORES).open(newline="") as file:
        rows = list(csv.DictReader(file))
    head = (
        "prediction of C4", "partial r", "variance kept", "SSIM",
        f"Moran's I (truth {_of(rows[0], 'morans_i_truth')})", "R²", "effective spots of 184",
        "genes, FDR 5 %",
    )  # fmt: skip
    columns = ("pcc_partial", "relative_variance", "ssim", "morans_i_map", "r2")
    return markdown_table(
        head,
        [
            (
                row["method"],
                *(_of(row, name) for name in columns),
                f"{float(row['effective_spots']):.0f}",
                row["genes_fdr_5"],
            )
            for row in rows
        ],
    )


def _by_level(path: Path) -> dict[int, dict[tuple[str, str], dict[str, Any]]]:
    """Rows by percent of the intervals, then by head and section, of maps HEAD-SECTION-PERCENT.h5ad."""
    levels: dict[int, dict[tuple[str, str], dict[str, Any]]] = {}
    for row in json.loads(path.read_text())["results"]:
        head = row["file"].removesuffix(".h5ad").rsplit("-", 2)[0]
        title = TITLES.get(head, head.replace(".", ", "))
        levels.setdefault(round(100 * row["nominal"]), {})[title, row["section"]] = row
    return levels


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    return dict(json.loads(path.read_text())["results"]["perturbations"])


def _ranking(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next((own for own in row["abstention"] if own["ranking"] == name), {})


def _of(row: Mapping[str, str], name: str) -> str:
    return _number(float(row[name]))


def _number(value: float | None, digits: int = 3) -> str:
    return NO_VALUE if value is None else f"{value:.{digits}f}".replace("-", "−")


def _percent(share: float, digits: int = 1) -> str:
    return f"{share:.{digits}%}".replace("%", " %")
