"""Means over neighboring spots: against brute force, in groups, resumed, and in parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import onnxruntime
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_model import TILE_PX, fast_regression
from synthetic_slides import tissue

from mclst.runtime import RunOptions, open_bundle, open_slide, predict
from mclst.runtime.encoder.ring import Group
from mclst.runtime.errors import SlideError
from mclst.runtime.expression_map.parts import SlidePart
from mclst.runtime.inference.neighborhood import NeighborhoodMeans

GENES, EMBEDDING, MPP, RADIUS_UM = 5, 3, 0.5, 20.0


def brute_force(
    own: NDArray[np.float32], context: NDArray[np.float32], xy: NDArray[np.float64], radius: float
) -> NDArray[np.float64]:
    """The definition, spot by spot; rows that are NaN have no tile."""
    known = np.isfinite(own).all(axis=1)
    result = np.full(own.shape, np.nan)
    for i in np.flatnonzero(known):
        near = known & (np.hypot(*(xy - xy[i]).T) <= radius)
        near[i] = False
        mean = context[near].mean(0, dtype=np.float64) if near.any() else context[i]
        result[i] = own[i].astype(np.float64) + mean
    return result


@given(st.integers(1, 60), st.integers(1, 9), st.floats(0, 60), st.integers(0, 2**31), st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_spots_in_any_groups_get_the_mean_of_their_neighbors(
    n: int, size: int, radius: float, seed: int, some_done: bool
) -> None:
    rng = np.random.default_rng(seed)
    xy = rng.integers(0, 100, (n, 2)).astype(np.float64)
    order = np.lexsort((xy[:, 0], xy[:, 1]))
    group = np.empty(n, np.int64)
    group[order] = np.arange(n) // size
    values = rng.normal(size=(n, 6)).astype(np.float32)
    failed = rng.random(n) < 0.2
    values[failed] = np.nan
    expected = brute_force(values[:, :3], values[:, 3:], xy, radius)
    means = NeighborhoodMeans(xy, group, radius)
    done = (rng.random(group.max() + 1) < 0.5)[group] if some_done else np.zeros(n, bool)
    skip = means.plan(done)
    assert not skip[~done].any()
    result = np.full((n, 3), np.nan)

    def keep(ready: Group) -> None:
        assert np.isnan(result[ready.rows]).all(), "a row comes once"
        result[ready.rows] = ready.values

    for number in range(group.max() + 1):
        rows = order[(group[order] == number) & ~failed[order]]
        if len(rows) and not skip[rows].any():
            for ready in means.add(Group(rows, values[rows])):
                keep(ready)
    for ready in means.finish():
        keep(ready)
    expected[done] = np.nan
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    assert not means._blocks or not means._waiting


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide, 2,500 spots in five groups, and a regression with a neighborhood."""
    folder = tmp_path_factory.mktemp("neighborhood")
    tifffile.imwrite(folder / "slide.tif", tissue(600, 800), tile=(64, 64), photometric="rgb", metadata=None)
    rng = np.random.default_rng(2)
    rows = [f"s{i},{x:.1f},{y:.1f}" for i, (x, y) in enumerate(rng.uniform(20, (780, 580), (2500, 2)))]
    (folder / "spots.csv").write_text("\n".join(["id,x,y", *rows, "far,799,599"]) + "\n")
    fast_regression(folder / "bundle", GENES, embedding=EMBEDDING, radius_um=RADIUS_UM)
    run(folder, folder / "whole.h5ad")
    return folder


def run(
    place: Path,
    out: Path,
    *,
    advance: Callable[[int], None] = lambda n: None,
    shard: SlidePart | None = None,
    mpp: float | None = MPP,
) -> list[str]:
    notes: list[str] = []
    options = RunOptions(provider="cpu", picture=False, mpp=mpp, any_stain=True)
    with open_slide(place / "slide.tif") as slide:
        predict(
            open_bundle(place / "bundle"), slide, place / "spots.csv", out, options, advance=advance,
            notify=notes.append, shard=shard,
        )  # fmt: skip
    return notes


def test_a_run_gives_own_values_plus_the_mean_of_the_neighbors(place: Path) -> None:
    result = anndata.read_h5ad(place / "whole.h5ad")
    xy = result.obsm["spatial"]
    border = ((TILE_PX, TILE_PX), (TILE_PX, TILE_PX), (0, 0))
    image = np.pad(tifffile.imread(place / "slide.tif"), border)
    corners = np.floor(xy).astype(int) - TILE_PX // 2 + TILE_PX
    tiles = np.stack([image[y : y + TILE_PX, x : x + TILE_PX] for x, y in corners])
    session = onnxruntime.InferenceSession(
        place / "bundle" / "encoder.onnx", providers=["CPUExecutionProvider"]
    )
    values = session.run(None, {"tiles": tiles})[0]
    width = EMBEDDING + GENES
    expected = brute_force(values[:, :width], values[:, width:], xy, RADIUS_UM / MPP)[:, EMBEDDING:]
    np.testing.assert_allclose(result.X, expected, rtol=0, atol=1e-5)
    assert result.uns["mclst"]["settings"]["neighborhood_um"] == RADIUS_UM


def test_a_stopped_run_resumes_to_the_same_bytes(place: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    seen = 0

    def stop_late(count: int) -> None:
        nonlocal seen
        seen += count
        if seen > 1800:
            raise Stop

    with pytest.raises(Stop):
        run(place, tmp_path / "map.h5ad", advance=stop_late)
    notes = run(place, tmp_path / "map.h5ad")
    resumed = next(note for note in notes if note.startswith("resuming"))
    assert 0 < int(resumed.split(": ")[1].split()[0].replace(",", "")) < 2501
    expected = anndata.read_h5ad(place / "whole.h5ad").X
    assert np.array_equal(anndata.read_h5ad(tmp_path / "map.h5ad").X, expected)


def test_parts_read_the_neighbors_of_their_border(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.h5ad"
    for part in (2, 0, 1):
        run(place, out, shard=SlidePart(3, part))
    run(place, out, shard=SlidePart(3))
    assert np.array_equal(anndata.read_h5ad(out).X, anndata.read_h5ad(place / "whole.h5ad").X)


def test_without_a_scale_no_radius_is_known(place: Path, tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"averages over spots within 20 µm; give --mpp"):
        run(place, tmp_path / "map.h5ad", mpp=None)
    assert not list(tmp_path.iterdir())
