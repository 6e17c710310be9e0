"""Files that version 0.1.0 wrote stay valid: tests/data/small, see make_small_bundle.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from mclst.runtime import RunOptions, open_bundle, open_slide, predict
from mclst.runtime.cli.report import main as report_main
from mclst.runtime.expression_map.journal import read_journal
from mclst.runtime.expression_map.reader import open_map

SMALL = Path(__file__).resolve().parent / "data" / "small"
SECTION = SMALL / "section"
SLIDE = SECTION / "images" / "B1.png"
EPSILON = 1e-5
"""For other CPUs and library versions; the values are about 2."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the files, where commands may write."""
    return Path(shutil.copytree(SMALL, tmp_path / "old"))


RENAMED = {
    "sequence": "slide_network",
    "normalisation": "normalization",
    "normalisation_expression": "normalization_expression",
}
"""Keys that 0.1.0 wrote and what they are called today."""


def renamed(value: Any) -> Any:
    """The same JSON with today's keys."""
    if isinstance(value, dict):
        return {RENAMED.get(key, key): renamed(item) for key, item in value.items()}
    return [renamed(item) for item in value] if isinstance(value, list) else value


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Values of nested JSON by path, but for versions, which name what is installed."""
    if not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        k: v for key, item in items if key != "versions" for k, v in flatten(item, f"{path}/{key}").items()
    }


def keys(value: Any) -> set[str]:
    return set(flatten(renamed(value)))


def uns_keys(path: Path) -> set[str]:
    names: set[str] = set()
    with h5py.File(path) as file:
        file["uns"].visit(names.add)
    return {
        "/".join(RENAMED.get(part, part) for part in name.split("/"))
        for name in names
        if not name.startswith("mclst/versions/")
    }


def test_a_bundle_opens_unchanged() -> None:
    bundle = open_bundle(SMALL / "mclst-bundle")
    stored = json.loads((SMALL / "mclst-bundle" / "manifest.json").read_text())
    assert json.loads(bundle.manifest.model_dump_json(by_alias=True, exclude_unset=True)) == renamed(stored)
    assert bundle.bank.embedding.shape == (48, 16) and bundle.genes == [f"GENE{i}" for i in range(12)]


def test_a_run_gives_the_same_map_and_the_same_keys(tmp_path: Path) -> None:
    with open_slide(SLIDE) as slide:
        bundle = open_bundle(SMALL / "mclst-bundle")
        spots = SECTION / "spots" / "B1_selection.tsv"
        predict(bundle, slide, spots, tmp_path / "small.h5ad", RunOptions(picture=False, any_stain=True))
    with open_map(SMALL / "small.h5ad") as before, open_map(tmp_path / "small.h5ad") as after:
        np.testing.assert_allclose(after.expression[:], before.expression[:], rtol=0, atol=EPSILON)
        np.testing.assert_array_equal(after.xy_px, before.xy_px)
        assert after.genes == before.genes and after.title == before.title
        assert after.table.columns.tolist() == before.table.columns.tolist()
        assert after.table.index.tolist() == before.table.index.tolist()
        columns = ["nearest_distance", "effective_k"]
        np.testing.assert_allclose(after.table[columns], before.table[columns], rtol=EPSILON)
    assert uns_keys(tmp_path / "small.h5ad") >= uns_keys(SMALL / "small.h5ad")
    reports = [json.loads((folder / "small.run.json").read_text()) for folder in (SMALL, tmp_path)]
    assert keys(reports[0]) <= keys(reports[1])


def test_a_report_of_an_old_map(old: Path) -> None:
    words = [str(old / "small.h5ad"), "--slide", str(SLIDE), "--csv", "--geojson"]
    result = CliRunner().invoke(report_main, words)
    assert result.exit_code == 0, result.output
    assert {path.name for path in old.iterdir()} - {path.name for path in SMALL.iterdir()} >= {
        "small.html",
        "small.csv",
    }


def test_an_evaluation_of_an_old_map(old: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed; install mclst[eval]")
    from mclst.evaluation.cli import main as evaluate_main

    words = [
        str(old / "small.h5ad"),
        "--truth",
        str(SECTION),
        "--json",
        str(old / "eval.json"),
        "-q",
        "--overwrite",
    ]
    result = CliRunner().invoke(evaluate_main, words)
    assert result.exit_code == 0, result.output
    before, after = (json.loads((folder / "eval.json").read_text()) for folder in (SMALL, old))
    assert keys(after) >= keys(before)
    before, after = (flatten(content["methods"]) for content in (before, after))
    assert {name: after[name] for name in before} == pytest.approx(before, abs=EPSILON)


def test_the_journal_of_an_old_run_is_one_of_today(tmp_path: Path) -> None:
    """Else a run stopped before an upgrade starts anew although nothing changed.

    The columns of the table of spots are hashed without pandas since 0.2.0: their hash alone differs.
    """
    before = read_journal(SMALL / "journal-header.json")
    assert before is not None and not len(before[1])
    spots, journal = tmp_path / "spots.csv", tmp_path / ".small.h5ad.journal"
    rows = [f"s{i},{20 + i % 50},{20 + i // 50}" for i in range(4000)]
    spots.write_text("\n".join(["id,x,y", *rows]) + "\n")
    headers: list[dict[str, str]] = []

    def read_header(count: int) -> None:
        if not headers and (content := read_journal(journal)):
            headers.append(content[0])

    with open_slide(SLIDE) as slide:
        options = RunOptions(any_stain=True)
        bundle, out = open_bundle(SMALL / "mclst-bundle"), tmp_path / "small.h5ad"
        predict(bundle, slide, spots, out, options, advance=read_header)
    (now,) = headers
    installed = ("version of", "the provider", "the retrieval")
    assert [name for name in now if not name.startswith(installed)] == [
        name for name in before[0] if not name.startswith(installed)
    ]
    assert {name for name in now if name.startswith(("the provider", "the retrieval"))} == {
        "the provider",
        "the retrieval",
    }
    same = {name: value for name, value in before[0].items() if not name.startswith(installed)}
    del same["the table of spots"]
    assert same.items() <= now.items()
