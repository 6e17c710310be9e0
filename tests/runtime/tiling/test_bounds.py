"""Spots outside a slide are refused, whoever cuts the tiles."""

from __future__ import annotations

import ast
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
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
        ("id,imagerow,imagecol\na,310.5,402.25\nb,120.1,600\n", "600 4000 8000"),
        ("id,imagerow,imagecol\na,310.5,402.25\nb,120.1,601\n", "8000"),
        ("id,imagerow,imagecol\na,310.5,402.25\nb,120.1,2000\n", "8000"),
        ("id,imagerow,imagecol\na,310.5,402.25\nb,120.1,2001\n", ""),
        ("id,row,col,imagerow,imagecol\na,1,2,310.5,402.25\n", ""),
        ("id,y_px,x_px\na,310.5,402.25\n", ""),
    ],
)
@pytest.mark.parametrize("as_obs", [False, True])
def test_coordinates_that_seurat_scaled_to_the_small_picture_are_refused(
    tmp_path: Path, text: str, refused: str, as_obs: bool
) -> None:
    """In a table, or in obs of a converted object; on a slide of 1000 px they may well be its pixels."""
    (tmp_path / "seurat.csv").write_text(text)
    source = tmp_path / "seurat.csv"
    if as_obs:
        obs = pd.read_csv(source, index_col="id")
        source = tmp_path / "seurat.h5ad"
        anndata.AnnData(np.ones((len(obs), 1), np.float32), obs=obs).write_h5ad(source)
    spots = read_spots(source)
    assert spots.variant in (("AnnData", "Seurat coordinates") if as_obs else (spots.variant,))
    for level, width in ((4.0, "1000"), (1.0, "4000"), (0.5, "8000")):
        slide = FormulaSlide((level,))
        if width in refused.split():
            with pytest.raises(SpotsError, match=rf"seurat\.(csv|h5ad): .* {width} x .* px: .* scale = NULL"):
                check_spots(spots, slide)
        elif spots.xy_px.max() < 750 or width != "1000":
            check_spots(spots, slide)


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
