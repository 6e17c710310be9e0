"""The five lines of Python in the README, and what a notebook shows of their results."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small_model import Small

from mclst.runtime import Files, RunOptions, open_bundle, open_slide, predict


class Cells(HTMLParser):
    """Text of the cells, in order, and the sources of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_data(self, text: str) -> None:
        if self.cells:
            self.cells[-1] += text


def read(shown: str) -> tuple[dict[str, str], list[str]]:
    parser = Cells()
    parser.feed(shown)
    return dict(zip(parser.cells[::2], parser.cells[1::2], strict=True)), parser.images


def test_five_lines_of_python(
    small: Small, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = open_bundle(small_bundle)
    with open_slide(small.slide) as slide:
        run = predict(bundle, slide, small.spots, "slide.h5ad", RunOptions(files=Files(html=False, csv=True)))
    rows, _ = read(bundle._repr_html_())
    assert rows["genes"] == "12" and rows["reference spots"] == "48" and rows["neighbors averaged"] == "10"
    rows, _ = read(slide._repr_html_())
    assert rows["level 0"] == "240 x 200 px" and "µm per px" not in rows
    assert repr(slide).startswith("Slide(") and "240 x 200 px, µm/px unknown" in repr(slide)
    rows, images = read(run._repr_html_())
    assert rows["map"] == "slide.h5ad" and rows["spots"] == "24" and rows["csv"] == "slide.csv"
    assert len(images) == 1 and images[0].startswith("data:image/jpeg;base64,/9j/")
    (tmp_path / "slide.genes.png").unlink()
    assert read(run._repr_html_())[1] == []


@pytest.mark.slow
def test_the_interface_is_light_to_import() -> None:
    code = (
        "import sys; from mclst.runtime import Files; import mclst.runtime; "
        "heavy = {'onnxruntime', 'faiss', 'spatialdata', 'torch'} & set(sys.modules); "
        "assert not heavy, heavy; assert 'predict' in mclst.runtime.__all__"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
