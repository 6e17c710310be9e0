"""Adapters: on tiles of a real slide, LazySlide and TIAToolbox give what mclst-infer gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from synthetic_maps import synthetic_map

from mclst.adapters.tile_predictor import TilePredictor, as_pixels
from mclst.runtime import RunOptions, open_bundle, open_slide, predict
from mclst.runtime.errors import BundleError, InputError
from mclst.runtime.report.files import Files

REAL = "CMU-1-Small-Region.svs"
S = 32


def map_of(bundle: Path, slide: Path, centers: NDArray[Any], folder: Path) -> NDArray[np.float32]:
    """Expression that mclst-infer gives at these centers, x, y in level-0 px."""
    table = folder / "spots.csv"
    pd.DataFrame({"id": range(len(centers)), "x": centers[:, 0], "y": centers[:, 1]}).to_csv(
        table, index=False
    )
    options = RunOptions(picture=False, report=False, files=Files(html=False), any_stain=True, provider="cpu")
    with open_slide(slide) as opened:
        run = predict(open_bundle(bundle), opened, table, folder / "map.h5ad", options)
    return np.asarray(anndata.read_h5ad(run.map_path).X)


@pytest.fixture(scope="module")
def corners() -> NDArray[np.int64]:
    """Upper left corners of tiles over the tissue of the real slide."""
    return np.array([[400 + 150 * i, 500 + 210 * j] for i in range(4) for j in range(5)])


@pytest.fixture(scope="module")
def expected(
    small_bundle: Path, slides: Path, corners: NDArray[np.int64], tmp_path_factory: pytest.TempPathFactory
) -> NDArray[np.float32]:
    return map_of(small_bundle, slides / REAL, corners + S / 2, tmp_path_factory.mktemp("map"))


def test_the_predictor_gives_the_map_s_values(
    small_bundle: Path, slides: Path, corners: NDArray[np.int64], expected: NDArray[np.float32]
) -> None:
    with open_slide(slides / REAL) as slide:
        tiles = np.stack([slide.read(x, y, S, S) for x, y in corners.tolist()])
    predictor = TilePredictor(small_bundle, provider="cpu", batch_size=7)
    np.testing.assert_allclose(predictor.predict(tiles), expected, rtol=0, atol=1e-5)
    assert predictor.predict(tiles[:0]).shape == (0, 12)


def test_lazyslide_gives_the_map_s_values(
    small_bundle: Path, slides: Path, tmp_path: Path, corners: NDArray[np.int64]
) -> None:
    zs = pytest.importorskip("lazyslide", reason="lazyslide is not installed")
    from mclst.adapters.lazyslide import MclstTileModel, register_bundle

    wsi = zs.open_wsi(str(slides / REAL), store=str(tmp_path / "wsi.zarr"))
    zs.pp.tile_tissues(wsi, S, stride_px=256, tissue_key=None, background_filter=False)
    model = MclstTileModel(small_bundle, provider="cpu", genes=["GENE3", "GENE0"])
    zs.tl.tile_prediction(wsi, model, pbar=False)
    tiles = wsi.shapes["tiles"]
    corner = np.array([geometry.bounds[:2] for geometry in tiles.geometry])
    truth = map_of(small_bundle, slides / REAL, corner + S / 2, tmp_path)
    np.testing.assert_allclose(tiles[["GENE3", "GENE0"]].to_numpy(), truth[:, [3, 0]], rtol=0, atol=1e-5)
    assert len(tiles) > 20
    register_bundle("mclst-small", small_bundle, provider="cpu", genes=["GENE1"])
    zs.tl.tile_prediction(wsi, "mclst-small", pbar=False)
    np.testing.assert_allclose(wsi.shapes["tiles"]["GENE1"], truth[:, 1], rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="TP53"):
        MclstTileModel(small_bundle, genes=["TP53"])


def test_tiatoolbox_gives_the_map_s_values(
    small_bundle: Path, slides: Path, corners: NDArray[np.int64], expected: NDArray[np.float32]
) -> None:
    engine = pytest.importorskip(
        "tiatoolbox.models.engine.patch_predictor", reason="tiatoolbox is not installed"
    )
    reader = pytest.importorskip("tiatoolbox.wsicore.wsireader", reason="tiatoolbox is not installed")
    from mclst.adapters.tiatoolbox import MclstModel

    slide = reader.WSIReader.open(slides / REAL)
    tiles = [
        slide.read_rect(location=tuple(corner), size=(S, S), resolution=0, units="level")
        for corner in corners.tolist()
    ]
    model = MclstModel(small_bundle, provider="cpu")
    assert model.class_dict == dict(enumerate(model.genes))
    predictor = engine.PatchPredictor(model=model, batch_size=7, num_workers=0, device="cpu", verbose=False)
    output = predictor.run(
        images=np.stack(tiles), patch_mode=True, ioconfig=model.ioconfig, return_probabilities=True
    )
    np.testing.assert_allclose(np.asarray(output["probabilities"]), expected, rtol=0, atol=1e-5)


def test_scanpy_s_way_gives_the_map_s_values(
    small_bundle: Path, slides: Path, corners: NDArray[np.int64], expected: NDArray[np.float32]
) -> None:
    import mclst.tl

    adata = anndata.AnnData(np.ones((len(corners), 2), np.float32))
    adata.obs_names = [f"spot{i}" for i in range(len(corners))]
    adata.obsm["spatial"] = corners + S / 2
    words: dict[str, Any] = {"any_stain": True, "provider": "cpu"}
    changed = mclst.tl.predict(adata, slides / REAL, small_bundle, copy=True, key_added="he", **words)
    assert changed is not None and list(adata.obsm) == ["spatial"]
    frame = changed.obsm["he"]
    assert list(frame.columns) == open_bundle(small_bundle).genes and list(frame.index) == list(
        adata.obs_names
    )
    np.testing.assert_array_equal(frame.to_numpy(), expected)
    assert (changed.obs["he_nearest_distance"] > 0).all()
    assert changed.uns["he"]["bundle"]["sha256"] == open_bundle(small_bundle).sha256
    assert mclst.tl.predict(adata, slides / REAL, small_bundle, **words) is None
    np.testing.assert_array_equal(adata.obsm["mclst"].to_numpy(), expected)


def test_scanpy_s_way_keeps_what_a_calibrated_map_says(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mclst.tl import prediction

    made = synthetic_map(tmp_path / "made.h5ad", calibrated=True)
    given = anndata.read_h5ad(made.path)
    monkeypatch.setattr(prediction, "predict_map", lambda *_: SimpleNamespace(map_path=made.path))
    Image.new("RGB", (1500, 1500)).save(tmp_path / "slide.png")
    adata = anndata.AnnData(np.ones((len(made.spots), 1), np.float32), obsm={"spatial": made.xy_px})
    adata.obs_names = made.spots
    prediction.predict(adata, tmp_path / "slide.png", small_bundle)
    adata.write_h5ad(tmp_path / "with.h5ad")
    kept = anndata.read_h5ad(tmp_path / "with.h5ad")
    for column in ("outside", "expected_error", "distance_percentile", "nearest_distance", "effective_k"):
        np.testing.assert_array_equal(kept.obs[f"mclst_{column}"], given.obs[column])
    for name in ("low", "high"):
        np.testing.assert_array_equal(kept.obsm[f"mclst_{name}"], given.layers[name])
    pd.testing.assert_frame_equal(kept.uns["mclst"]["genes"], given.var)


def test_positions_that_are_none_are_named(small_bundle: Path, slides: Path) -> None:
    import mclst.tl

    adata = anndata.AnnData(np.ones((2, 1), np.float32))
    with pytest.raises(InputError, match="spatial"):
        mclst.tl.predict(adata, slides / REAL, small_bundle)
    adata.obsm["spatial"] = np.array([[10.0, 10], [np.nan, 3]])
    with pytest.raises(InputError, match="'1'"):
        mclst.tl.predict(adata, slides / REAL, small_bundle)


def test_tiles_of_another_size_are_refused(small_bundle: Path) -> None:
    predictor = TilePredictor(small_bundle, provider="cpu")
    for tiles in (
        np.zeros((1, 64, 64, 3), np.uint8),
        np.zeros((1, S, S, 3), np.float32),
        np.zeros((S, S, 3)),
    ):
        with pytest.raises(InputError, match="takes uint8"):
            predictor.predict(tiles)  # type: ignore[arg-type]
    for batch in (0, -1):
        with pytest.raises(InputError, match="1 or more"):
            TilePredictor(small_bundle, provider="cpu", batch_size=batch)


def test_pixels_that_a_tool_has_normalized_are_refused() -> None:
    pixels = np.arange(256).reshape(1, 16, 16, 1)
    for kind in (np.uint8, np.int64, np.float32):
        np.testing.assert_array_equal(as_pixels(pixels.astype(kind)), pixels)
    for wrong in (pixels / 255, pixels - 1, pixels + 1, np.where(pixels == 7, np.nan, pixels)):
        with pytest.raises(InputError, match="whole numbers from 0 to 255"):
            as_pixels(wrong)


@pytest.mark.parametrize("embedding", [0, 3])
def test_a_prediction_beside_an_embedding_is_the_map_s(
    slides: Path, corners: NDArray[np.int64], tmp_path: Path, embedding: int
) -> None:
    from small_model import fast_regression

    bundle = fast_regression(tmp_path / "bundle", 4, embedding=embedding)
    expected = map_of(bundle, slides / REAL, corners + S / 2, tmp_path)
    with open_slide(slides / REAL) as slide:
        tiles = np.stack([slide.read(x, y, S, S) for x, y in corners.tolist()])
    predictor = TilePredictor(bundle, provider="cpu", batch_size=7)
    np.testing.assert_allclose(predictor.predict(tiles), expected, rtol=0, atol=1e-5)


def test_a_neighborhood_is_refused(tmp_path: Path) -> None:
    from small_model import fast_regression

    bundle = fast_regression(tmp_path / "bundle", 4, embedding=3, radius_um=50.0)
    with pytest.raises(BundleError, match=r"several spots of a slide together.*mclst-infer"):
        TilePredictor(bundle)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hf://ORG/NAME"):
        TilePredictor("hf://nowhere")
    with pytest.raises(BundleError, match="not a bundle"):
        TilePredictor(tmp_path / "none")
