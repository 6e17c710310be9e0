"""Spots outside a slide are refused, whoever cuts the tiles."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from formula_slide import FormulaSlide
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick

from mclst.runtime.errors import SpotsError
from mclst.runtime.tiling.bounds import check_centers, check_spots
from mclst.sections.tables.spots import read_spots

ROOT = Path(__file__).resolve().parents[3]
PLACES_OF_ITS_OWN = {
    "runtime/run/context.py": "predict checks the table before it opens the run",
    "benchmarks/reading/readers.py": "draws its corners inside the slide",
    "training/fitting/features.py": "read_fit_section checks the spots",
    "training/fitting/trident.py": "read_fit_section checks the spots",
    "runtime/sharing/bioimageio.py": "takes centers of a grid over the tissue",
}


@quick
@given(st.lists(st.tuples(st.floats(-10, 5000), st.floats(-10, 4000)), min_size=1, max_size=20))
def test_any_center_outside_is_refused_and_counted(places: list[tuple[float, float]]) -> None:
    slide = FormulaSlide()  # 4000 x 3000 px
    outside = [i for i, (x, y) in enumerate(places) if not (0 <= x < 4000 and 0 <= y < 3000)]
    if not outside:
        check_centers(np.array(places), slide, str)
        return
    with pytest.raises(SpotsError) as refusal:
        check_centers(np.array(places), slide, lambda row: f"spot {row} ")
    assert str(refusal.value).startswith(f"spot {outside[0]} ")
    assert (f"{len(outside) - 1} more" in str(refusal.value)) == (len(outside) > 1)


def test_spots_without_coordinates_are_left_to_the_reader() -> None:
    check_centers(np.array([[np.nan, 1.0], [5.0, 5.0]]), FormulaSlide(), str)
    with pytest.raises(SpotsError, match=r"^7 at x -1.*; give coordinates"):
        check_centers(np.array([[np.nan, np.nan], [-1.0, 5.0]]), FormulaSlide(), lambda row: str(6 + row))


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("id,imagerow,imagecol\na,310.5,402.25\nb,120.1,600\n", True),
        ("id,imagerow,imagecol\na,310.5,402.25\nb,120.1,601\n", False),
        ("id,row,col,imagerow,imagecol\na,1,2,310.5,402.25\n", False),
        ("id,y_px,x_px\na,310.5,402.25\n", False),
    ],
)
def test_coordinates_that_seurat_scaled_to_the_small_picture_are_refused(
    tmp_path: Path, text: str, refused: bool
) -> None:
    (tmp_path / "seurat.csv").write_text(text)
    spots = read_spots(tmp_path / "seurat.csv")
    if refused:
        with pytest.raises(SpotsError, match=r"seurat\.csv: .* 4000 x 3000 px: .* scale = NULL"):
            check_spots(spots, FormulaSlide())
    else:
        check_spots(spots, FormulaSlide())
    check_spots(spots, FormulaSlide((4.0,)))  # 1000 x 750 px: they may well be its pixels


def test_every_module_that_cuts_tiles_at_given_places_checks_them() -> None:
    for folder in ("benchmarks", "demo", "evaluation", "export", "runtime", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            names = {
                node.func.id
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            }
            relative = path.relative_to(ROOT).as_posix()
            if "Tiles" in names and relative not in PLACES_OF_ITS_OWN:
                assert names & {"check_spots", "check_centers"}, f"{relative} cuts tiles unchecked"
