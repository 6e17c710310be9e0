"""ST-Net, HisToGene, Hist2ST and THItoGene from checkpoint to map, and refused options."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from refusals import assert_refused
from small_model import GENES, Small
from system_cases import SYSTEM_CASES, small_network

from mclst.export.cli import main as export_main
from mclst.export.inputs.checkpoint import open_checkpoint
from mclst.export.onnx.graph import write_graph
from mclst.export.parity.compare import encode_with_checkpoint
from mclst.export.settings import resolve_settings
from mclst.models.stnet import StNet
from mclst.models.system import systems
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.bundle.manifest import Graph, Normalization, Preprocessing, Settings, Tile
from mclst.runtime.cli.infer import main as infer_main
from mclst.runtime.errors import SpotsError
from mclst.runtime.inference.slide_network import check_positions
from mclst.runtime.inference.spot_graph import nearest_spots
from mclst.runtime.providers.opening import open_session
from mclst.runtime.tiling.tiles import Tiles
from mclst.sections.tables.spots import read_spots

pytestmark = pytest.mark.usefixtures("short_stnet")
MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)


def wrapped(name: str, state: dict[str, torch.Tensor]) -> Any:
    """Wrap a state dict as each system's training saves it."""
    if name == "stnet":
        return {"model": {f"module.{key}": t for key, t in state.items()}, "optim": {"lr": 1e-6}}
    if name == "hist2st":
        only_training = {
            "mean.0.weight": torch.zeros(GENES, 4),
            "coef.2.bias": torch.zeros(1),
            "pi.0.bias": torch.ones(2),
        }
        return {**state, **only_training}
    return {"state_dict": state, "epoch": 1, "global_step": 7, "pytorch-lightning_version": "1.4.0"}


@pytest.fixture(scope="module", params=sorted(SYSTEM_CASES))
def bundled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small: Small
) -> tuple[str, Any, Path]:
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    _, tile_px, options = SYSTEM_CASES[name]
    network = small_network(name)
    torch.save(wrapped(name, network.state_dict()), folder / "model.ckpt")
    result = export(folder, name, small, *options, "--tile-px", str(tile_px))
    assert result.exit_code == 0, result.output
    return name, network, folder


def export(folder: Path, name: str, small: Small, *options: str, genes: bool = True) -> Result:
    words = [
        "--ckpt",
        str(folder / "model.ckpt"),
        "--out",
        str(folder / "mclst-bundle"),
        "--parity-tiles",
        "10",
        "--precision",
        "fp32",
    ]
    listed = ["--genes", str(small.folder / "genes.txt")] if genes else []
    return CliRunner().invoke(export_main, [*words, *listed, *options])


def infer(folder: Path, slide: Path, spots: Path, *options: str) -> Result:
    words = [str(slide), "--spots", str(spots), "--bundle", str(folder / "mclst-bundle")]
    return CliRunner().invoke(
        infer_main, [*words, "--out", str(folder / "map.h5ad"), "--no-picture", *options]
    )


def expected_map(name: str, network: Any, slide: Path, table: Path) -> np.ndarray:
    """Cut tiles by hand and run the network in torch over all spots."""
    tile_px = SYSTEM_CASES[name][1]
    picture, spots = np.asarray(Image.open(slide).convert("RGB")), read_spots(table)
    assert spots.array_xy is not None
    padded, half = np.pad(picture, ((100, 100), (100, 100), (0, 0))), tile_px // 2
    corners = np.floor(spots.xy_px).astype(int) + 100 - half
    tiles = np.stack([padded[y : y + tile_px, x : x + tile_px] for x, y in corners]).astype(np.float64)
    if name == "stnet":
        pixels = ((tiles / 255 - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2)
    else:
        pixels = tiles.transpose(0, 3, 2, 1)  # x before y
    with torch.no_grad():
        expected = network.encode_tiles(torch.from_numpy(pixels).float())
        if name != "stnet":
            prune = "grid" if name == "hist2st" else "none"
            graph = nearest_spots(spots.array_xy, Graph(neighbors=4, prune=prune))  # type: ignore[arg-type]
            edges = () if name == "histogene" else tuple(map(torch.from_numpy, graph))
            expected = network.predict_expression(expected, torch.from_numpy(spots.array_xy), *edges)
    expression: np.ndarray = expected.numpy()
    return expression


def test_from_checkpoint_to_map(bundled: tuple[str, Any, Path], small: Small) -> None:
    name, network, folder = bundled
    result = infer(folder, small.slide, small.spots, "--overwrite", "--batch-size", "5")
    assert result.exit_code == 0, result.output
    assert "straight from the network" in result.stderr
    expected = expected_map(name, network, small.slide, small.spots)
    predicted = anndata.read_h5ad(folder / "map.h5ad")
    assert np.abs(predicted.X - expected).max() < 1e-4 * max(1, float(np.abs(expected).max()))
    assert list(predicted.var_names) == [f"GENE{i}" for i in range(GENES)]
    assert not {"nearest_distance", "effective_k"} & set(predicted.obs)
    provenance = predicted.uns["mclst"]["bundle"]
    assert provenance["system"] == name and provenance["kind"] == (
        "regression" if name == "stnet" else "slide"
    )


def test_slide_systems_are_not_served(bundled: tuple[str, Any, Path], small: Small) -> None:
    name, _, folder = bundled
    of_a_bundle = (
        "--bundle",
        str(folder / "mclst-bundle"),
        "--triton",
        str(folder / "models"),
        "--overwrite",
    )
    result = CliRunner().invoke(export_main, of_a_bundle)
    assert result.exit_code == (0 if name == "stnet" else 4), result.output
    if name != "stnet":
        of_a_checkpoint = ("--ckpt", str(folder / "model.ckpt"), "--out", str(folder / "again"))
        again = CliRunner().invoke(export_main, [*of_a_checkpoint, "--triton", str(folder / "models")])
        assert again.exit_code == 4
        for sentence in (result.stderr, again.stderr):
            assert "predicts from all spots of a slide together" in " ".join(sentence.split())
        assert not (folder / "models").exists() and not (folder / "again").exists()


def test_an_unreadable_tile_is_excluded_from_the_slide_network(
    bundled: tuple[str, Any, Path], small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is NaN; the others equal the network's output without it."""
    name, network, folder = bundled
    read_some = Tiles._read_some

    def read(tiles: Tiles, rows: Any, out: Any) -> list[tuple[int, str]]:
        failed = read_some(tiles, rows, out)
        return [*failed, (5, "broken on purpose")] if 5 in rows else failed

    monkeypatch.setattr(Tiles, "_read_some", read)
    result = infer(folder, small.slide, small.spots, "-q", "--overwrite", "--max-bad-tiles", "1")
    assert result.exit_code == 0, result.output
    predicted = anndata.read_h5ad(folder / "map.h5ad").X
    kept = np.arange(24) != 5
    lines = small.spots.read_text().splitlines()
    (folder / "without.tsv").write_text("\n".join(lines[:6] + lines[7:]) + "\n")
    expected = expected_map(name, network, small.slide, folder / "without.tsv")
    assert np.isnan(predicted[5]).all()
    assert np.abs(predicted[kept] - expected).max() < 1e-4 * max(1, float(np.abs(expected).max()))


def test_the_manifest_records_settings_that_checkpoints_lack(bundled: tuple[str, Any, Path]) -> None:
    name, _, folder = bundled
    m = open_bundle(folder / "mclst-bundle").manifest
    assert m.system == name and m.retrieval is None and not m.bank and m.genes == GENES
    if name == "stnet":
        assert (m.preprocessing.mean, m.preprocessing.std) == (MEAN, STD)
        assert m.preprocessing.axes == "row-major" and m.normalization == Normalization.of(
            "none", "log-share"
        )
        assert m.slide_network is None
        return
    assert (m.preprocessing.axes, m.preprocessing.pixel_range) == ("x-major", "0-255")
    assert m.slide_network is not None and (m.slide_network.positions, m.normalization.expression) == (
        64,
        "spot-wise",
    )
    prune = {"histogene": None, "hist2st": "grid", "thitogene": "none"}[name]
    assert (m.slide_network.graph and m.slide_network.graph.prune) == prune
    parity = json.loads((folder / "mclst-bundle" / "parity.json").read_text())
    assert parity["passed"] and parity["tiles"]["count"] == 10


def test_a_bundle_of_format_1_predicts_the_same(bundled: tuple[str, Any, Path], small: Small) -> None:
    """Its manifest and its slide graph have other names."""
    _, _, folder = bundled
    old = folder / "old"
    shutil.copytree(folder / "mclst-bundle", old / "mclst-bundle", ignore=shutil.ignore_patterns("engines"))
    path = old / "mclst-bundle" / "manifest.json"
    content = json.loads(path.read_text()) | {"format": "mclst-bundle/1"}
    content["normalisation"] = content.pop("normalization")
    content["sequence"] = network = content.pop("slide_network")
    if network is not None:
        content["kind"] = "sequence"
        if network["graph"]:
            network["graph"]["neighbours"] = network["graph"].pop("neighbors")
        (path.parent / "slide.onnx").rename(path.parent / "sequence.onnx")
        content["files"]["sequence.onnx"] = content["files"].pop("slide.onnx")
    path.write_text(json.dumps(content))
    for place in (folder, old):
        result = infer(place, small.slide, small.spots, "--overwrite", "--provider", "cpu")
        assert result.exit_code == 0, result.output
    maps = [anndata.read_h5ad(place / "map.h5ad") for place in (folder, old)]
    np.testing.assert_array_equal(maps[1].X, maps[0].X)
    assert maps[1].uns["mclst"]["bundle"]["kind"] == maps[0].uns["mclst"]["bundle"]["kind"]


def test_options_that_do_not_apply_are_refused(bundled: tuple[str, Any, Path], small: Small) -> None:
    name, _, folder = bundled
    title = systems()[name].title
    required = SYSTEM_CASES[name][2]
    cases: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        (("--k", "3"), (title, "retrieval.k")),
        (("--sections", "A1"), ("--sections", "--reference")),
    ]
    if name == "stnet":
        cases += [(("--prune", "grid"), (title, "graph.prune"))]
    else:
        cases += [(("--average",), (title, "preprocessing.symmetries")), (("--heads", "7"), ("7 heads",))]
    for options, words in cases:
        result = export(folder, name, small, "-q", "--overwrite", *required, *options)
        assert_refused(result, 4, words)
    assert_refused(
        export(folder, name, small, "-q", "--overwrite", *required, genes=False), 4, ("--genes", "12 genes")
    )
    assert_refused(
        infer(folder, small.slide, small.spots, "-q", "--overwrite", "--k", "3"), 4, ("without a bank",)
    )


def test_stnet_needs_the_mean_and_std_of_its_training(tmp_path: Path, small: Small) -> None:
    torch.save(StNet(GENES).state_dict(), tmp_path / "model.ckpt")
    assert_refused(export(tmp_path, "stnet", small, "-q"), 4, ("ST-Net", "--mean"))
    assert_refused(export(tmp_path, "stnet", small, "-q", "--mean", "0,0,0"), 4, ("ST-Net", "--std"))


class Tiny(torch.nn.Module):
    """A network that distinguishes rotations and reflections."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 8)

    def encode_tiles(self, tiles: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = torch.relu(self.conv(tiles)).flatten(1)
        return features


def test_the_mean_over_eight_symmetries_is_inside_the_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Tiny().eval().requires_grad_(False)
    settings = Preprocessing(mean=MEAN, std=STD, symmetries=8)
    write_graph(network, Tile(size_px=8), settings, tmp_path / "encoder.onnx", output="expression")
    tiles = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    turned = [np.rot90(t, k, (1, 2)) for t in (tiles, tiles[:, ::-1]) for k in range(4)]
    p = {key: t.double().numpy() for key, t in network.state_dict().items()}
    each = [
        np.maximum(np.einsum("nyxc,ocyx->no", (t / 255 - MEAN) / STD, p["conv.weight"]) + p["conv.bias"], 0)
        for t in turned
    ]
    assert np.abs(each[1] - each[0]).max() > 0.1
    expected = np.mean(each, axis=0)
    averaged = open_session(tmp_path / "encoder.onnx", "cpu").encode(tiles)
    assert np.abs(averaged - expected).max() < 1e-5
    assert (
        np.abs(encode_with_checkpoint(network, tiles, Settings(preprocessing=settings)) - expected).max()
        < 1e-5
    )


def test_average_is_an_option_of_stnet(tmp_path: Path) -> None:
    torch.save(StNet(GENES).state_dict(), tmp_path / "model.ckpt")
    change = {"preprocessing": {"symmetries": 8, "mean": MEAN, "std": STD}}
    assert resolve_settings(open_checkpoint(tmp_path / "model.ckpt"), change).preprocessing.symmetries == 8
    assert "--average" in CliRunner().invoke(export_main, ["--help"]).output


def test_coordinates_beyond_the_tables_are_named(small: Small, tmp_path: Path) -> None:
    lines = small.spots.read_text().splitlines()
    cells = lines[3].split("\t")
    lines[3] = "\t".join(["64", *cells[1:]])
    (tmp_path / "spots.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(SpotsError, match=r"spots.tsv, line 4: spot 64x\d+ is at array position \(64, \d+\)"):
        check_positions(read_spots(tmp_path / "spots.tsv"), 64)
    (tmp_path / "plain.csv").write_text("id,x,y\na,20,30\n")
    with pytest.raises(SpotsError, match="no array coordinates"):
        check_positions(read_spots(tmp_path / "plain.csv"), 64)


def test_names_of_genes_are_checked_against_the_manifest(bundled: tuple[str, Any, Path]) -> None:
    folder = bundled[2]
    assert open_bundle(folder / "mclst-bundle").genes == [f"GENE{i}" for i in range(GENES)]
    published = {"mclstexp", "bleep", "stnet", "histogene", "hist2st", "thitogene"}
    assert set(systems()) == published | {"fitted", "fitted-retrieval"}
