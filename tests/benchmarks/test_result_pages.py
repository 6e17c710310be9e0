"""Pages of benchmark results: every figure of the JSON stands in them, and bad files are refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mclst.benchmarks.cli import main
from mclst.benchmarks.page.browser import find_chromium, open_browser
from mclst.benchmarks.page.synthetic_maps import noisy_map, retrieved_map
from mclst.runtime.expression_map.reader import Map
from mclst.runtime.report.page.openseadragon import VIEWER_PATH

RESULTS = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "results").glob("*.json"))


class Tables(HTMLParser):
    """Rows of text of every table, and the headings."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.where = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "h3":
            self.headings.append("")
        self.where = tag if tag in ("th", "td", "h3") else self.where

    def handle_endtag(self, tag: str) -> None:
        self.where = "" if tag == self.where else self.where

    def handle_data(self, text: str) -> None:
        if self.where in ("th", "td"):
            self.tables[-1][-1][-1] += text
        elif self.where == "h3":
            self.headings[-1] += text


def page(*words: str) -> Result:
    return CliRunner().invoke(main, ["page", *words])


def read(path: Path) -> Tables:
    parser = Tables()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def times(median: float) -> dict[str, float]:
    return {"n": 3, "min": median / 2, "median": median, "max": 2 * median, "mean": median}


MADE: dict[str, Any] = {
    "created": "2026-01-02T03:04:05+00:00",
    "machine": {"cpu": "<script>x</script>", "cores": 2},
    "results": [
        {
            "case": "one",
            "shape": {"n": 5},
            "contenders": [
                {"name": "ours", "wall_s": times(0.25), "samples": {"wall_s": [1, 2]}, "error": 1e-9},
                {"name": "theirs", "wall_s": times(1.5), "samples": {"wall_s": [3]}, "error": None},
            ],
        },
        {
            "case": "two",
            "readers": {"a": {"rate": {"wall": times(7.0)}}, "b": {"rate": {"wall": times(9.0)}}},
        },
    ],
}


def test_every_result_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.json").write_text(json.dumps(MADE))
    done = page("r.json")
    assert done.exit_code == 0 and done.stdout == "mclst-bench.html\n", done.output
    result = read(Path("mclst-bench.html"))
    assert "case one" in result.headings and "case two" in result.headings
    assert result.tables[0] == [
        ["name", "wall s", "wall s, range", "error"],
        ["ours", "0.25", "0.125 – 0.5", "1e-09"],
        ["theirs", "1.5", "0.75 – 3", "–"],
    ]
    assert result.tables[1][1] == ["a", "7", "3.5 – 14"] and result.tables[1][2][0] == "b"
    text = Path("mclst-bench.html").read_text()
    assert "<script>x" not in text and "&lt;script&gt;x" in text and "2026-01-02" in text
    assert "var(--bar) 100.0%" in text and "var(--bar) 16.7%" in text


def test_published_results_make_a_page(tmp_path: Path) -> None:
    assert RESULTS
    done = page(*map(str, RESULTS), "--out", str(tmp_path / "all.html"), "-q")
    assert done.exit_code == 0, done.output
    result = read(tmp_path / "all.html")
    retrieval = json.loads((RESULTS[0].parent / "retrieval-xeon-2-cores.json").read_text())
    names = {row[0] for table in result.tables for row in table}
    for result in retrieval["results"]:
        assert {one["name"] for one in result["contenders"]} <= names


@pytest.mark.parametrize(
    ("words", "code"),
    [(["absent.json"], 4), (["list.json"], 4), (["broken.json"], 4), (["r.json", "sub/r.json"], 4), ([], 2),
     (["r.json", "--out", "absent/p.html"], 5), (["r.json", "--out", "r.json", "--overwrite"], 5)],
)  # fmt: skip
def test_bad_results_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    for place in ("r.json", "sub/r.json"):
        Path(place).write_text(json.dumps(MADE))
    Path("list.json").write_text("[1]")
    Path("broken.json").write_text("{")
    done = page(*words)
    assert done.exit_code == code and "Traceback" not in done.output, done.output
    assert not list(Path().glob("*.html")) and json.loads(Path("r.json").read_text()) == MADE


@pytest.mark.parametrize("make", [retrieved_map, noisy_map])
def test_made_up_maps_have_what_they_say(make: Callable[[int, int], Map]) -> None:
    result = make(500, 40)
    assert result.expression.shape == (500, 40) and len(result.spots) == len(set(result.spots)) == 500
    assert result.on_grid and result.mpp == 0.5 and result.morans_i.min() > 0.3


@pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium is installed; `make browser` does, on Debian"
)
@pytest.mark.skipif(
    not VIEWER_PATH.is_file(), reason="OpenSeadragon was not fetched when mclst was installed"
)
def test_viewing_is_measured_and_its_page_sorts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed")
    monkeypatch.chdir(tmp_path)
    words = [
        "viewing",
        "--spots",
        "900",
        "--genes",
        "40",
        "--repeats",
        "1",
        "--json",
        "v.json",
        "--keep",
        "p.html",
    ]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    results = json.loads(Path("v.json").read_text())["results"]
    assert results[0]["page_bytes"] == os.path.getsize("p.html")
    assert [result["map"] for result in results] == ["synthetic: retrieved", "synthetic: noisy"]
    for result in results:
        assert result["first_picture_ms"]["n"] == 1 and result["spots"] == 900 and result["genes"] == 40
        assert result["frame_ms"]["n"] == 90 and result["paint_ms"]["n"] == 20
    assert page("v.json", "--out", "v.html").exit_code == 0
    with open_browser() as browser:
        opened, complaints = browser.new_page(), []
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.goto((tmp_path / "v.html").as_uri())
        opened.get_by_role("button", name="spots", exact=True).click()
        assert opened.locator("th[aria-sort=descending]").inner_text() == "spots"
        assert complaints == []
