"""Fit, export and infer with a small encoder of one's own recipe, against an independent computation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_encoder import WIDTH, write_small_encoder
from small_model import TILE_PX, write_reference
from torch.nn import functional

from mclst.export.cli import main as export
from mclst.export.inputs.checkpoint import open_checkpoint
from mclst.models.recipes.build import build_encoder
from mclst.models.recipes.find import find_recipe
from mclst.models.recipes.weights import load_weights
from mclst.models.recipes.weights_file import read_weights_file
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.cli.infer import main as infer
from mclst.runtime.encoder.cpu_stages import CpuStages
from mclst.runtime.errors import ReferenceDataError, SlideError
from mclst.runtime.features.cache import FeatureCache
from mclst.runtime.progress import Clock
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.sections.formats.reference import find_sections, match_genes, read_section
from mclst.sections.normalize import gene_wise
from mclst.training.fitting.cli import main as fit
from mclst.training.fitting.features import EncoderSetup, FeatureSource
from mclst.training.fitting.sections import read_fit_section
from mclst.training.fitting.trident import read_all_features

VIEWS, CONTEXT_UM, MPP, ALPHA = (1.5, 1.0), 5.0, 0.25, 3000.0
SIDE, BASE = TILE_PX, 1
"""BASE: number of the view that neighbors contribute."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sections of 12 spots, an encoder, and a cache of features."""
    folder = tmp_path_factory.mktemp("fit")
    write_reference(folder / "sections", spots=12)
    write_small_encoder(folder)
    return folder


@pytest.fixture(scope="module")
def weights(place: Path) -> Path:
    return place / "small.pth"


def run(place: Path, command: Any, *words: Any) -> Result:
    environment = {"MCLST_CACHE": str(place / "cache"), "MCLST_FEATURE_CACHE_GB": "1"}
    return CliRunner().invoke(command, [str(word) for word in words], env=environment)


def fit_words(place: Path, weights: Path, out: str, *more: str) -> list[str]:
    views = ",".join(map(str, VIEWS))
    return [
        str(place / "sections"), "--hold-out", "B1", "--encoder", str(place / "small.yaml"),
        "--weights", str(weights),
        "--views", views, "--context", str(CONTEXT_UM), "--mpp", str(MPP), "--out", str(place / out), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def fitted(place: Path, weights: Path) -> Path:
    """A ridge with two views and a context, fitted on A1 and A2."""
    done = run(
        place,
        fit,
        *fit_words(place, weights, "model.pt", "--alpha", str(ALPHA), "--json", str(place / "fit.json")),
    )
    assert done.exit_code == 0, done.output
    return place / "model.pt"


def features(place: Path, name: str, weights: Path) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """A section's features and expression, by Pillow, torch's resize and loops."""
    recipe = find_recipe(place / "small.yaml")
    network = build_encoder(recipe, load_weights(recipe, weights))
    section = read_section(find_sections(place / "sections")[name])
    assert isinstance(section.image, Path) and section.xy_px is not None
    border, views = SIDE, []
    image = np.pad(np.asarray(Image.open(section.image)), ((border, border), (border, border), (0, 0)))
    for view in VIEWS:
        side = round(SIDE * view)
        tiles = []
        for x, y in np.floor(section.xy_px).astype(int) + border - side // 2:
            tile = torch.from_numpy(image[y : y + side, x : x + side].copy()).permute(2, 0, 1)[None]
            scaled = functional.interpolate(
                tile.float() / 255, (SIDE, SIDE), mode=recipe.interpolation, antialias=True
            )
            tiles.append(
                (scaled - 0.5) / torch.tensor(recipe.std).view(1, 3, 1, 1)
                if recipe.mean == (0.5,) * 3
                else (scaled - torch.tensor(recipe.mean).view(1, 3, 1, 1))
                / torch.tensor(recipe.std).view(1, 3, 1, 1)
            )
        with torch.inference_mode():
            views.append(network(torch.cat(tiles)).double().numpy())
    own, xy = np.concatenate(views, 1), section.xy_px
    near = []
    for i in range(len(xy)):
        others = [j for j in range(len(xy)) if j != i and np.hypot(*(xy[i] - xy[j])) <= CONTEXT_UM / MPP]
        near.append(views[BASE][others].mean(0) if others else views[BASE][i])
    genes = (place / "sections" / "genes.txt").read_text().split()
    return np.concatenate([own, np.stack(near)], 1), gene_wise(match_genes(section, genes))


def test_a_map_is_what_scikit_learn_predicts_from_torchs_features(
    place: Path, weights: Path, fitted: Path
) -> None:
    words = ["--ckpt", fitted, "--out", place / "bundle", "--precision", "fp32", "-q"]
    assert run(place, export, *words).exit_code == 0
    manifest = open_bundle(place / "bundle").manifest
    assert (manifest.kind, manifest.system, manifest.encoder.name) == (
        "regression",
        "fitted",
        "small",
    )
    assert (manifest.tile.size_px, manifest.neighborhood.radius_um) == (48, CONTEXT_UM)  # type: ignore[union-attr]
    sections = place / "sections"
    words = [sections / "images" / "B1.png", "--spots", sections / "spots" / "B1_selection.tsv", "--bundle",
             place / "bundle", "--mpp", str(MPP), "--out", place / "B1.h5ad", "--no-picture",
             "--provider", "cpu", "--any-stain"]  # fmt: skip
    done = run(place, infer, *words)
    assert done.exit_code == 0, done.output
    (x1, y1), (x2, y2) = (features(place, name, weights) for name in ("A1", "A2"))
    x, _ = features(place, "B1", weights)
    peer = make_pipeline(StandardScaler(), Ridge(ALPHA))
    expected = peer.fit(np.concatenate([x1, x2]), np.concatenate([y1, y2]).astype(np.float64)).predict(x)
    actual = anndata.read_h5ad(place / "B1.h5ad")
    spots = read_section(find_sections(sections)["B1"]).spot
    np.testing.assert_allclose(actual[list(spots)].X, expected, rtol=0, atol=1e-4)
    assert "predicted by ridge on a small network from" in (place / "B1.html").read_text()
    about = open_bundle(place / "bundle").manifest.about
    assert about is not None and about.head is not None and about.evaluation is not None
    assert about.head.settings == "α 3e+03, views 1.5, 1, context 5 µm"
    scores = json.loads((place / "fit.json").read_text())["scores"]
    mean = np.mean([item["mse"] for item in scores.values()])
    assert about.evaluation.metrics[-1].value == pytest.approx(mean, abs=1e-6)
    assert np.ptp(expected, axis=0).min() > 0.03
    # The scores are those of fits that leave one section out.
    left_out = peer.fit(x1, y1.astype(np.float64)).predict(x2)
    stored = read_weights_file(fitted)["out_of_fold"]
    assert [(item["section"], item["fold"], item["step"]) for item in stored] == [
        ("A1", "A1", 1),
        ("A2", "A2", 1),
    ]
    # Fitted on 12 spots, a feature that hardly varies there enlarges the rounding of a spot where it does.
    predicted = stored[1]["prediction"].float().numpy()
    assert np.quantile(np.abs(predicted - left_out), 0.9) < 2e-3
    report = json.loads((place / "fit.json").read_text())
    assert report["scores"]["A2"]["mse"] == pytest.approx(np.square(predicted - y2).mean(), rel=1e-2)
    assert report["encoded"] == 24


def test_a_checkpoint_may_name_its_encoder_by_reference(
    place: Path, weights: Path, fitted: Path, tmp_path: Path
) -> None:
    words = fit_words(place, weights, "light.pt", "--alpha", str(ALPHA), "--weights-by-reference")
    assert run(place, fit, *words).exit_code == 0
    assert (place / "light.pt").stat().st_size < fitted.stat().st_size / 2
    missing = run(place, export, "--ckpt", place / "light.pt", "--out", tmp_path / "b")
    assert (
        missing.exit_code == 4
        and "give them with --weights" in missing.stderr
        and weights.name in missing.stderr
    )
    changed = dict(torch.load(weights, weights_only=True))
    name = next(name for name in changed if name.endswith("weight"))
    changed[name] = changed[name] * 1.001
    torch.save(changed, tmp_path / "other.pth")
    other = run(
        place,
        export,
        "--ckpt",
        place / "light.pt",
        "--weights",
        tmp_path / "other.pth",
        "--out",
        tmp_path / "b",
    )
    assert other.exit_code == 4 and "does not hold the weights" in other.stderr
    whole = run(place, export, "--ckpt", fitted, "--weights", weights, "--out", tmp_path / "b")
    assert whole.exit_code == 4 and "leave --weights out" in whole.stderr
    restored = open_checkpoint(place / "light.pt", weights=weights)
    expected = open_checkpoint(fitted)
    assert restored.traits == expected.traits and restored.state.keys() == expected.state.keys()
    assert all(torch.equal(restored.state[name], tensor) for name, tensor in expected.state.items())


def test_features_of_trident_are_taken_if_they_are_the_encoders(
    place: Path, weights: Path, tmp_path: Path
) -> None:
    section = read_section(find_sections(place / "sections")["A1"])
    assert section.xy_px is not None
    xy_px = section.xy_px
    own, _ = features(place, "A1", weights)
    (tmp_path / "h5").mkdir()

    def write(values: NDArray[Any], side: int = SIDE) -> Result:
        with h5py.File(tmp_path / "h5" / "A1.h5", "w") as file:
            file["features"] = values.astype(np.float32)
            file["coords"] = np.floor(xy_px).astype(np.int64) - side // 2
            file["coords"].attrs["patch_size_level0"] = side
        words = [place / "sections", "--sections", "A1", "--encoder", str(place / "small.yaml"),
                 "--weights", weights, "--from-features", tmp_path / "h5",
                 "--out", tmp_path / "model.pt", "--overwrite"]  # fmt: skip
        return run(place, fit, *words)

    view = own[:, WIDTH * BASE : WIDTH * (BASE + 1)]
    assert write(view).exit_code == 0
    for values, words in (
        (np.where(np.arange(12)[:, None] == 7, np.nan, view), "the features of patch 7 are not finite"),
        (view[:, :100], "has 100 features per patch and the encoder gives 256"),
        (
            np.abs(np.random.default_rng(0).normal(size=view.shape)),
            "does not hold the features of a small network",
        ),
    ):
        refused = write(values)
        assert refused.exit_code == 4 and words in refused.stderr
    refused = write(view, side=512)
    assert refused.exit_code == 4 and "has patches of 512 level-0 px" in refused.stderr


def damaged_slide(place: Path, path: Path, segments: slice) -> NDArray[np.bool_]:
    """A1's image as a TIFF with damaged segments of 48 px; return which spots' tiles they are under."""
    section = read_section(find_sections(place / "sections")["A1"])
    assert isinstance(section.image, Path) and section.xy_px is not None
    tifffile.imwrite(path, np.asarray(Image.open(section.image)), tile=(48, 48), compression="zlib")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        wide = -(-page.shape[1] // 48)
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    content = bytearray(path.read_bytes())
    bad = range(len(places))[segments]
    for start, size in (places[number] for number in bad):
        content[start : start + size] = b"\0" * size
    path.write_bytes(content)
    corners = np.floor(section.xy_px).astype(int) - SIDE // 2
    segment = np.arange(len(places))
    x, y = segment % wide * 48, segment // wide * 48
    under = (np.abs(x + 24 - corners[:, :1] - SIDE / 2) < 24 + SIDE / 2) & (
        np.abs(y + 24 - corners[:, 1:] - SIDE / 2) < 24 + SIDE / 2
    )
    return np.asarray(under[:, list(bad)].any(axis=1))


def test_damaged_tiles_are_not_among_those_that_are_kept(
    place: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a section's features or TRIDENT's, whose encoder is proved on other patches."""
    monkeypatch.setenv("MCLST_CACHE", str(tmp_path / "cache"))
    slide, recipe = tmp_path / "A1.tif", find_recipe(place / "small.yaml")
    under = damaged_slide(place, slide, slice(10, 15))
    assert under[0] and not under.all(), "the first is among those that would be kept and checked"
    genes = (place / "sections" / "genes.txt").read_text().split()
    whole = read_section(find_sections(place / "sections")["A1"])
    assert isinstance(whole.image, Path) and whole.xy_px is not None
    section = read_fit_section(dataclasses.replace(whole, image=slide), genes, None)
    setup = EncoderSetup(recipe, load_weights(recipe, weights))
    with open_slide(whole.image) as undamaged:
        tiles = Tiles(undamaged, section.xy_px, TileShape(SIDE, None), batch_size=1, workers=1)
        expected = [tiles.read_tile(int(row)) for row in np.flatnonzero(~under)]
    source = FeatureSource(setup, FeatureCache(0))
    source._session = Untraced()  # type: ignore[assignment]
    encoded = source.encode(section, 12)
    assert sorted(encoded.failed) == np.flatnonzero(under).tolist()
    np.testing.assert_array_equal(encoded.sample, expected)

    own, _ = features(place, "A1", weights)
    with h5py.File(tmp_path / "A1.h5", "w") as file:
        file["features"] = own[:, WIDTH * BASE : WIDTH * (BASE + 1)].astype(np.float32)
        file["coords"] = np.floor(section.xy_px).astype(np.int64) - SIDE // 2
        file["coords"].attrs["patch_size_level0"] = SIDE
    taken = read_all_features([tmp_path / "A1.h5"], [section], setup, 12)["A1"]
    np.testing.assert_array_equal(taken.sample, expected)
    damaged_slide(place, slide, slice(None))
    with pytest.raises(SlideError, match=r"A1\.tif cannot be read under the patches of .*A1\.h5"):
        read_all_features([tmp_path / "A1.h5"], [section], setup, 12)


class Untraced:
    """A session whose features are 0, but for the fifth tile."""

    def __init__(self, fifth: float = 0.0) -> None:
        self._fifth = fifth

    def stages(self, batch: int, *, group_rows: int, on_device: bool, clock: Clock) -> CpuStages:
        def encode(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
            values = np.zeros((len(tiles), WIDTH), np.float32)
            values[4:5] = self._fifth
            return values

        shape = (batch, SIDE, SIDE, 3)
        return CpuStages(encode, batch=shape, group_rows=group_rows, clock=clock)


def test_features_that_are_not_finite_name_the_spot(place: Path) -> None:
    recipe, genes = find_recipe(place / "small.yaml"), (place / "sections" / "genes.txt").read_text().split()
    section = read_fit_section(read_section(find_sections(place / "sections")["A1"]), genes, MPP)
    source = FeatureSource(EncoderSetup(recipe, {}), FeatureCache(0))
    source._session = Untraced(np.nan)  # type: ignore[assignment]
    with pytest.raises(ReferenceDataError, match=r"not finite for spot \d+x\d+ of section A1"):
        source.encode(section, 0)


def test_bad_input_is_one_sentence_and_leaves_nothing(place: Path, weights: Path, tmp_path: Path) -> None:
    sections = place / "sections"
    bare = tmp_path / "bare"
    for part in ("counts", "spots"):
        (bare / part).mkdir(parents=True)
        source = next((sections / part).glob("A1*"))
        (bare / part / source.name).write_bytes(source.read_bytes())
    (tmp_path / "groups.tsv").write_text("A1\tp1\n")
    base = ["--encoder", place / "small.yaml", "--weights", weights, "--out", tmp_path / "model.pt"]
    for words, code, text in (
        ([bare, *base], 4, "has no image: there is no A1.tif"),
        ([sections, *base, "--groups", tmp_path / "groups.tsv"], 4, "has no group for section A2"),
        ([sections, *base, "--sections", "A1", "--groups", "absent.tsv"], 4, "absent.tsv cannot be read"),
        ([sections, *base, "--alpha", "nan"], 2, "'nan' is not a finite number"),
        ([sections, *base, "--alpha", "inf"], 2, "'inf' is not a finite number"),
        ([sections, *base, "--context", "nan", "--mpp", "1"], 2, "'nan' is not a finite number"),
        ([sections, *base, "--context", "50"], 4, "--context is in µm; give --mpp"),
        ([sections, *base, "--views", "1,1"], 2, "names a factor twice"),
        ([sections, *base, "--k", "5"], 2, "--k belongs to --head knn and blend"),
        ([sections, *base, "--sections", "A1,A2", "--head", "blend"], 4, "three sections or more"),
        ([sections, *base, "--encoder", "resnet18"], 4, "does not hold the weights of ResNet-18"),
        ([sections, *base, "--encoder", "no_such_network"], 4, "there is no encoder 'no_such_network'"),
    ):  # fmt: skip
        refused = run(place, fit, *words)
        assert refused.exit_code == code, refused.output
        assert text in refused.stderr and "Traceback" not in refused.output
    assert not (tmp_path / "model.pt").exists()
