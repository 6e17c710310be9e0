"""Real slides of two vendors end to end, against tiles that OpenSlide reads."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
from click.testing import CliRunner

from mclst.kernels.retriever import Retriever
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.cli.infer import main
from mclst.runtime.providers.opening import open_session


def grid(width: int, height: int, step: int) -> np.ndarray:
    x, y = np.meshgrid(np.arange(5, width, step), np.arange(5, height, step))
    return np.stack([x.ravel(), y.ravel()], 1)


def write_grid(path: Path, xy: np.ndarray) -> None:
    path.write_text("id,x,y\n" + "".join(f"s{i},{x},{y}\n" for i, (x, y) in enumerate(xy)))


def openslide_tile(path: Path, x: int, y: int) -> np.ndarray:
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(str(path)) as slide:
        return np.asarray(slide.read_region((x - 16, y - 16), 0, (32, 32)).convert("RGB"))


@pytest.mark.parametrize(
    ("name", "size", "mpp"),
    [("CMU-1-Small-Region.svs", (2220, 2967), 0.499), ("test3-DAPI-2-_387_.ndpi", (3968, 4864), 0.2282)],
)
@pytest.mark.slow
def test_a_grid_over_a_real_slide(
    slides: Path,
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    size: tuple[int, int],
    mpp: float,
) -> None:
    monkeypatch.chdir(tmp_path)
    xy = grid(*size, 211)
    write_grid(tmp_path / "grid.csv", xy)
    done = CliRunner().invoke(
        main, [str(slides / name), "--spots", "grid.csv", "--bundle", str(small_bundle), "--any-stain"]
    )
    assert done.exit_code == 0, done.output
    adata = anndata.read_h5ad(Path(name).stem + ".h5ad")
    assert adata.n_obs == len(xy) and np.isfinite(adata.X).all()
    assert np.array_equal(adata.obsm["spatial"], xy)
    assert float(adata.uns["mclst"]["slide"]["mpp"]) == pytest.approx(mpp, rel=1e-3)
    bundle = open_bundle(small_bundle)
    session = open_session(bundle.encoder_path, "cpu")
    some = np.linspace(0, len(xy) - 1, 25).astype(int)
    tiles = np.stack([openslide_tile(slides / name, *xy[i]) for i in some])
    expected = Retriever(bundle.bank, bundle.retrieval, "reference").aggregate(session.encode(tiles))
    assert np.abs(adata.X[some] - expected.expression).max() < 1e-4


@pytest.mark.slow
def test_bad_tiles_are_named_and_the_rest_is_right(
    slides: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_grid(tmp_path / "grid.csv", grid(2220, 2967, 97))
    maps = {}
    for name in ("CMU-1-Small-Region", "CMU-1-Small-Region.onebadtile"):
        words = [str(slides / f"{name}.svs"), "--spots", "grid.csv", "--bundle", str(small_bundle), "-v"]
        done = CliRunner().invoke(main, [*words, "--out", f"{name}.h5ad", "--no-picture"])
        assert done.exit_code == 0, done.output
        maps[name] = anndata.read_h5ad(f"{name}.h5ad")
    good, damaged = maps.values()
    bad = np.isnan(damaged.X).any(axis=1)
    # The zeroed JPEG tile of 240 px stands in column 4, row 5 of level 0; spots' tiles reach 16 px around.
    x, y = good.obsm["spatial"].T
    over = (x + 16 > 960) & (x - 16 < 1200) & (y + 16 > 1200) & (y - 16 < 1440)
    assert np.array_equal(bad, over) and over.any()
    assert np.array_equal(damaged.X[~bad], good.X[~bad])
    assert f"{over.sum()} of {len(bad)} tiles could not be read" in done.stderr
    assert all(name in done.stderr for name in damaged.obs_names[bad])
    assert int(damaged.uns["mclst"]["failed_spots"]) == over.sum()


@pytest.mark.parametrize(
    "name", ["CMU-1-Small-Region.truncated.svs", "histolab-broken.svs", "large_image-small_la.tiff"]
)
def test_slides_that_cannot_be_trusted_are_refused(
    slides: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_grid(tmp_path / "grid.csv", np.array([[1, 0]]))
    done = CliRunner().invoke(
        main, [str(slides / name), "--spots", "grid.csv", "--bundle", str(small_bundle)]
    )
    assert done.exit_code == 4 and name in done.stderr and "Traceback" not in done.stderr, done.output
    assert [p.name for p in tmp_path.iterdir()] == ["grid.csv"]
