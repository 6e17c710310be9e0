"""Fitted heads on one network: divided from it, sharing kept features, and in QuPath's extension."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from fitted_checkpoint import EMBEDDING, RECIPE, VIEWS, fitted_checkpoint
from numpy.typing import NDArray
from PIL import Image
from refusals import assert_refused
from small_model import GENES, Small

from mclst.export import direct_bundle
from mclst.export.cli import main
from mclst.export.onnx.fp16 import to_half
from mclst.export.onnx.graph import save
from mclst.export.parity.compare import (
    TileSet,
    compare_embedding,
    compare_expression,
    encode_with_export,
    prove_expression,
)
from mclst.export.parity.tolerances import Gate, check_gate, gate_for
from mclst.runtime import Run, RunOptions, open_bundle, open_slide, predict
from mclst.runtime.bundle.onnx_split import split_graph
from mclst.runtime.cli.bundle import main as check
from mclst.runtime.errors import ParityError
from mclst.runtime.report.files import Files

CHOSEN = ("GENE3", "GENE0", "GENE11")
# QuPath's extension loads TorchScript, which torch would like to retire.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning"
)


@dataclass(frozen=True)
class Exported:
    bundle: Path
    model: Path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """A ridge and a blend on the same network, each with a model of WSInfer."""
    made = {}
    for name in ("ridge", "blend"):
        folder = tmp_path_factory.mktemp(name)
        ckpt = fitted_checkpoint(folder / "model.pt", retrieval=name == "blend")
        words = ["--ckpt", ckpt, "--out", folder / "bundle", "--precision", "fp32", "-q",
                 "--keep-parity-tiles", "3", "--wsinfer", folder / "model",
                 "--wsinfer-genes", ",".join(CHOSEN), "--wsinfer-mpp", "0.5"]  # fmt: skip
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        made[name] = Exported(folder / "bundle", folder / "model")
    return made


def run(small: Small, bundle: Path, out: Path, **options: Any) -> Run:
    chosen: dict[str, Any] = {"provider": "cpu", "precision": "fp32", **options}
    plain = RunOptions(picture=False, report=False, any_stain=True, files=Files(html=False), **chosen)
    with open_slide(small.slide) as slide:
        return predict(open_bundle(bundle), slide, small.spots, out, plain)


def tiles_of(small: Small, adata: Any, side: int) -> NDArray[np.uint8]:
    """Tiles cut by Pillow and numpy, with black outside."""
    with Image.open(small.slide) as image:
        pixels = np.pad(np.asarray(image.convert("RGB")), ((side, side), (side, side), (0, 0)))
    corner = np.floor(adata.obsm["spatial"]).astype(int) - side // 2 + side
    return np.stack([pixels[y : y + side, x : x + side] for x, y in corner.tolist()])


@pytest.mark.parametrize("name", ["ridge", "blend"])
def test_wsinfer_s_model_and_the_whole_graph_give_the_map_s_values(
    small: Small, exported: dict[str, Exported], tmp_path: Path, name: str
) -> None:
    made = exported[name]
    bundle = open_bundle(made.bundle)
    assert bundle.manifest.encoder.prediction_dim == GENES
    assert bundle.manifest.trained_on == ("A1", "A2")
    adata = anndata.read_h5ad(run(small, made.bundle, tmp_path / "B1.h5ad").map_path)
    tiles = tiles_of(small, adata, bundle.manifest.tile.size_px)
    values = onnxruntime.InferenceSession(made.bundle / "encoder.onnx").run(None, {"tiles": tiles})[0]
    expected = values[:, EMBEDDING:]
    if name == "blend":
        bank = bundle.bank
        for row, query in enumerate(values[:, :EMBEDDING]):
            near = np.argsort(np.square(bank.embedding - query).sum(1), kind="stable")[:7]
            expected[row] += bank.expression[near].mean(0)
    np.testing.assert_allclose(adata.X, expected, rtol=0, atol=1e-5)

    network = torch.jit.load(made.model / "torchscript_model.pt")  # type: ignore[no-untyped-call]
    with torch.no_grad():
        logits = network(torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255)
    scale = json.loads((made.model / "config.json").read_text())["mclst"]["scale"]
    shown = torch.softmax(logits, 1).numpy()[:, :-1].astype(np.float64) * scale
    columns = adata[:, list(CHOSEN)].X
    assert (columns > 0).mean() > 0.5 and np.ptp(columns) > 0.1
    np.testing.assert_allclose(shown, columns.clip(0), rtol=0, atol=1e-5)


def test_an_embedding_that_fp16_cannot_hold_is_seen_beside_expression_that_it_can(
    exported: dict[str, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's CPU provider computes fp16 in fp32 and would hold it, so the overflow is put there."""
    proof = json.loads((exported["ridge"].bundle / "parity.json").read_text())
    assert proof["embedding"]["cosine_min"] > 0.99999
    assert 0 < proof["embedding"]["max_abs"] < 1e-3 * proof["embedding"]["largest_value"]
    ckpt = fitted_checkpoint(tmp_path / "model.pt", retrieval=False)
    exact: list[NDArray[np.float32]] = []

    def overflowing(session: Any, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        values = encode_with_export(session, tiles)
        if exact:
            values[2, 0] = np.inf
        exact.append(values)
        return values

    monkeypatch.setattr(direct_bundle, "encode_with_export", overflowing)
    words = ["--ckpt", str(ckpt), "--precision", "fp16", "-q", "--out", str(tmp_path / "bundle")]
    assert_refused(CliRunner().invoke(main, words), 4, ("not finite",))
    assert len(exact) == 2


def test_the_embedding_of_a_ridge_limits_no_reduced_precision() -> None:
    rng = np.random.default_rng(0)
    values, embedding = rng.normal(size=(2, 9, 5)).astype(np.float32)
    figures = {
        "expression": compare_expression(values, values),
        "embedding": compare_embedding(embedding, embedding + np.float32(0.5)),
    }
    record = check_gate("int8", figures, gate_for("int8", Gate()), "9 tiles")
    assert record["embedding"]["cosine_min"] < 0.98
    assert {name for name, value in record["gate"].items() if value is not None} == {"pearson", "nrmse"}


def test_a_graph_with_another_embedding_is_refused() -> None:
    values, right = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)
    tiles = TileSet(np.zeros((8, 2, 2, 3), np.uint8), "a section")
    prove_expression(values, values, tiles, "cpu", embeddings=(right, right))
    with pytest.raises(ParityError, match="embedding"):
        prove_expression(values, values, tiles, "cpu", embeddings=(right, right + np.float32(0.1)))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_divided_graph_gives_what_the_whole_one_gives(
    exported: dict[str, Exported], tmp_path: Path, precision: str
) -> None:
    path = exported["ridge"].bundle / "encoder.onnx"
    head = split_graph(path)
    if precision == "fp16":
        save(to_half(onnx.load(path), "fp16").model, path := tmp_path / "encoder.fp16.onnx")
    split = split_graph(path)
    assert split is not None and head is not None and split.width == RECIPE.width * len(VIEWS)
    # The head always is the one in fp32.
    for part in (split.encoder, head.head):
        onnx.checker.check_model(onnx.load_model_from_string(part), full_check=True)
    tiles = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), np.uint8)
    features = onnxruntime.InferenceSession(split.encoder).run(None, {"tiles": tiles})[0]
    assert features.shape == (3, split.width) and features.dtype == np.float32
    values = onnxruntime.InferenceSession(head.head).run(None, {"features": features})[0]
    whole = onnxruntime.InferenceSession(path).run(None, {"tiles": tiles})[0]
    np.testing.assert_allclose(values, whole, rtol=1e-5, atol=1e-4 if precision == "fp32" else 0.05)


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_another_head_on_the_same_network_encodes_nothing(
    small: Small,
    exported: dict[str, Exported],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    provider: str,
) -> None:
    if provider == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setenv("MCLST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MCLST_FEATURE_CACHE_GB", "1")
    blend = exported["blend"].bundle
    assert run(small, exported["ridge"].bundle, tmp_path / "a.h5ad", provider=provider).reused == 0
    again = run(small, blend, tmp_path / "b.h5ad", provider=provider)
    plain = run(small, blend, tmp_path / "c.h5ad", provider=provider, cache=False)
    assert (again.reused, plain.reused) == (again.spots, 0)
    x, expected = (anndata.read_h5ad(done.map_path).X for done in (again, plain))
    np.testing.assert_array_equal(x, expected)


def test_anyone_can_repeat_the_proof_on_the_tiles_that_were_kept(
    exported: dict[str, Exported], tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(exported["blend"].bundle, tmp_path / "bundle"))
    done = CliRunner().invoke(check, ["verify", str(bundle)])
    assert done.exit_code == 0 and "on 3 tiles, within" in " ".join(done.stderr.split()), done.output
    other = np.load(bundle / "parity_output.npy") + np.float32(0.01)
    np.save(bundle / "parity_output.npy", other)
    content = (bundle / "parity_output.npy").read_bytes()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["parity_output.npy"]["sha256"] = hashlib.sha256(content).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(CliRunner().invoke(check, ["verify", str(bundle)]), 4, ("what the checkpoint gave",))


def test_a_graph_without_a_fitted_head_stays_whole(small_bundle: Path) -> None:
    assert split_graph(small_bundle / "encoder.onnx") is None
