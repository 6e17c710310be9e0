"""Both commands on a real section and checkpoint, against predictions of the published code."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mclst.export.cli import main as export
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.retriever import Retriever
from mclst.runtime.bundle.bundle import Bundle, open_bundle
from mclst.runtime.cli.infer import main as infer
from mclst.runtime.providers.opening import open_session
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.sections import read_spots
from mclst.sections.accuracy import score

SETTINGS = {
    "expression_l1_k200": (RetrievalSpec(200, "cosine", "l1"), (0.2571, 0.3918, 0.9136, 0.7800)),
    "expression_l2_k200": (RetrievalSpec(200, "cosine", "l2"), (0.2571, 0.3917, 0.9136, 0.7800)),
    "expression_softmax_k200": (
        RetrievalSpec(200, "cosine", "l2", "softmax"),
        (0.2572, 0.3916, 0.9142, 0.7799),
    ),
    "expression_l2_k2400": (RetrievalSpec(2400, "cosine", "l2"), (0.2640, 0.3841, 0.9478, 0.8010)),
}


@pytest.fixture(scope="module")
def reference(her2st: Path) -> dict[str, np.ndarray]:
    return dict(np.load(her2st / "reference" / "C4.npz"))


@pytest.fixture(scope="module")
def run(her2st: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder after README's two commands."""
    here = tmp_path_factory.mktemp("C4")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        words = [
            "--ckpt",
            her2st / "model.pt",
            "--reference",
            her2st,
            "--sections",
            "A2-G3",
            "--hold-out",
            "C4",
        ]
        fast = ["--parity-tiles", "12", "--precision", "fp32", "--no-calibrate"]
        done = CliRunner().invoke(export, [*map(str, words), *fast])
        assert done.exit_code == 0, done.output
        words = [her2st / "images" / "C4.jpg", "--spots", her2st / "spots" / "C4_selection.tsv"]
        done = CliRunner().invoke(infer, list(map(str, words)))
        assert done.exit_code == 0, done.output
        assert done.stdout == "C4.h5ad\n"
    return here


@pytest.fixture(scope="module")
def bundle(run: Path) -> Bundle:
    return open_bundle(run / "mclst-bundle")


@pytest.fixture(scope="module")
def embeddings(bundle: Bundle, her2st: Path, reference: dict[str, np.ndarray]) -> np.ndarray:
    """Of the reference's spots, through our reader and the exported graph."""
    spots = read_spots(her2st / "spots" / "C4_selection.tsv")
    place = {str(name): i for i, name in enumerate(spots.id)}
    rows = [place[name.decode()] for name in reference["spot"]]
    session = open_session(bundle.encoder_path, "cpu")
    result = np.empty((len(rows), 256), np.float32)
    with open_slide(her2st / "images" / "C4.jpg") as slide:
        for batch in Tiles(slide, spots.xy_px[rows], TileShape(224), batch_size=16, workers=2):
            assert not batch.failed
            result[batch.rows] = session.encode(batch.tiles)
    return result


def assert_equal_expression(result: np.ndarray, expected: np.ndarray) -> None:
    assert np.quantile(np.abs(result - expected), 0.999) <= 1e-3
    assert np.corrcoef(result.ravel(), expected.ravel())[0, 1] > 0.99999


def test_embeddings_of_tiles_and_bank(
    bundle: Bundle, embeddings: np.ndarray, reference: dict[str, np.ndarray]
) -> None:
    assert len(bundle.bank) == reference["bank_size"]
    assert np.abs(bundle.bank.embedding[reference["bank_row"]] - reference["bank_embedding"]).max() < 1e-3
    assert np.abs(embeddings - reference["embedding"]).max() < 1e-3


@pytest.mark.parametrize("column", SETTINGS)
def test_expression_and_accuracy_of_every_setting(
    bundle: Bundle, embeddings: np.ndarray, reference: dict[str, np.ndarray], column: str
) -> None:
    spec, metrics = SETTINGS[column]
    result = Retriever(bundle.bank, spec).aggregate(embeddings).expression
    assert_equal_expression(result, reference[column])
    scored = score(result, reference["truth_genewise"])
    assert np.round([scored.pcc_acg, scored.pcc_heg, scored.mse, scored.mae], 3) == pytest.approx(
        np.round(metrics, 3)
    )


def test_neighbours_are_those_of_the_published_code(
    bundle: Bundle, embeddings: np.ndarray, reference: dict[str, np.ndarray]
) -> None:
    result = Retriever(bundle.bank, RetrievalSpec(200)).aggregate(embeddings, neighbors=True).neighbors
    assert result is not None
    common = [len(np.intersect1d(a, b)) for a, b in zip(result, reference["neighbours_k200"], strict=True)]
    assert min(common) >= 198 and np.mean(common) > 199.9


def test_the_map_is_the_published_prediction(run: Path, reference: dict[str, np.ndarray]) -> None:
    result = anndata.read_h5ad(run / "C4.h5ad")
    assert result.shape == (187, 785) and result.X.dtype == np.float32
    names = [name.decode() for name in reference["spot"]]
    assert_equal_expression(result[names].X, reference["expression_l1_k200"])
    nearest, effective = result.obs["nearest_distance"], result.obs["effective_k"]
    assert nearest.min() > 0 and effective.between(1, 200).all()
    with Image.open(run / "C4.genes.png") as picture:
        assert picture.size[0] > 1500


def test_scanpy_and_squidpy_open_the_map_unmodified(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import scanpy as sc
    import squidpy as sq

    monkeypatch.chdir(run)
    result = sc.read_h5ad("C4.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of scanpy's plans for this function
        sc.pl.spatial(result, color="GNAS", show=False)
    plt.savefig("scanpy.png")
    sq.pl.spatial_scatter(result, color="GNAS")
    plt.savefig("squidpy.png")
    plt.close("all")
    for name in ("scanpy.png", "squidpy.png"):
        assert np.asarray(Image.open(name).convert("RGB")).std() > 10
