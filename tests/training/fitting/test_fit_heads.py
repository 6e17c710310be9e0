"""Every other head from fit to map, on a small network, against its definition in numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_encoder import small_network, write_small_encoder
from small_model import GENES, TILE_PX, write_reference

from mclst.export.cli import main as export
from mclst.models.recipes.weights_file import read_weights_file
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.cli.infer import main as infer
from mclst.sections.formats.reference import find_sections, match_genes, read_section
from mclst.sections.normalize import gene_wise
from mclst.training.fitting.cli import main as fit

TRAINING, QUERY, SPOTS, ALPHA, K = ("A1", "A2", "A3"), "B1", 20, 30.0, 7
TOLERANCE = 5e-6
F64 = NDArray[np.float64]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sections, a recipe and its weights; features are kept from test to test."""
    folder = tmp_path_factory.mktemp("heads")
    write_reference(folder / "sections", (*TRAINING, QUERY), SPOTS)
    write_small_encoder(folder)
    return folder


def run(place: Path, command: Any, *words: Any) -> Result:
    environment = {"MCLST_CACHE": str(place / "cache"), "MCLST_FEATURE_CACHE_GB": "1"}
    done = CliRunner().invoke(command, [str(word) for word in words], env=environment)
    assert done.exit_code in (0, 4), done.output
    return done


def fit_words(place: Path, *more: str) -> list[Any]:
    return [place / "sections", "--hold-out", QUERY, "--encoder", place / "small.yaml", "--weights",
            place / "small.pth", "--out", place / "model.pt", "--overwrite", "--json", place / "fit.json",
            *more]  # fmt: skip


@pytest.fixture(scope="module")
def measured(place: Path) -> dict[str, tuple[F64, F64]]:
    """Features and expression of each section, by Pillow and torch."""
    network = small_network().eval()
    network.load_state_dict(torch.load(place / "small.pth", weights_only=True))
    genes = (place / "sections" / "genes.txt").read_text().split()
    result = {}
    for name, source in find_sections(place / "sections").items():
        section = read_section(source)
        assert isinstance(section.image, Path) and section.xy_px is not None
        image = np.pad(
            np.asarray(Image.open(section.image)), ((TILE_PX, TILE_PX), (TILE_PX, TILE_PX), (0, 0))
        )
        corners = np.floor(section.xy_px).astype(int) + TILE_PX - TILE_PX // 2
        tiles = np.stack([image[y : y + TILE_PX, x : x + TILE_PX] for x, y in corners])
        with torch.inference_mode():
            features = network(torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 * 2 - 1)
        expression = gene_wise(match_genes(section, genes))
        result[name] = (features.double().numpy(), expression.astype(np.float64))
    return result


def unit(rows: F64) -> F64:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def similarity(train: F64, values: F64, x: F64) -> F64:
    """Mean of all spots by their cosine, along the mean and the first components of what is scaled only."""
    std = train.std(0)
    std[std == 0] = 1
    scaled = train / std
    mean = scaled.mean(0)
    rank = np.linalg.matrix_rank(scaled - mean)
    components = np.linalg.svd(scaled - mean, full_matrices=False)[2][: rank - 1]
    axes = np.linalg.qr(np.vstack([mean, components]).T)[0]
    cosine = unit(x / std @ axes) @ unit(scaled @ axes).T
    return (cosine @ values) / cosine.sum(1, keepdims=True)


def mean_of_nearest(train: F64, values: F64, x: F64) -> F64:
    """Mean over the K nearest by cosine, in principal components."""
    space = make_pipeline(StandardScaler(), PCA()).fit(train)
    cosine = unit(space.transform(x)) @ unit(space.transform(train)).T
    near = np.argsort(-cosine, axis=1, kind="stable")[:, :K]
    return np.asarray(values[near].mean(1))


def regression(train: F64, values: F64, x: F64) -> F64:
    return np.asarray(make_pipeline(StandardScaler(), Ridge(ALPHA)).fit(train, values).predict(x))


def blend(train: F64, values: F64, x: F64) -> F64:
    """A ridge, and the mean residual of the nearest spots, each predicted without its section."""
    residuals = np.empty_like(values)
    for start in range(0, len(train), SPOTS):
        out = np.arange(start, start + SPOTS)
        rest = np.setdiff1d(np.arange(len(train)), out)
        residuals[out] = values[out] - regression(train[rest], values[rest], train[out])
    return regression(train, values, x) + mean_of_nearest(train, residuals, x)


@pytest.mark.parametrize(
    ("head", "definition"),
    [
        (("knn", "--weighting", "similarity"), similarity),
        (("blend", "--alpha", str(ALPHA), "--k", str(K)), blend),
    ],
    ids=["similarity", "blend"],
)
def test_a_map_is_what_the_head_s_definition_gives(
    place: Path, measured: dict[str, tuple[F64, F64]], head: tuple[str, ...], definition: Any
) -> None:
    name = head[0]
    assert run(place, fit, *fit_words(place, "--head", *head)).exit_code == 0
    report = json.loads((place / "fit.json").read_text())
    assert (report["encoder"], report["head"]) == ("small", head[0])
    bundle, out = place / name, place / f"{name}.h5ad"
    done = run(place, export, "--ckpt", place / "model.pt", "--out", bundle, "--precision", "fp32", "-q")
    assert done.exit_code == 0, done.output
    manifest = open_bundle(bundle).manifest
    assert (manifest.kind, manifest.bank_rows) == ("retrieval", SPOTS * len(TRAINING))
    assert manifest.encoder.prediction_dim == (0 if name == "knn" else GENES)
    sections = place / "sections"
    words = [sections / "images" / f"{QUERY}.png", "--spots", sections / "spots" / f"{QUERY}_selection.tsv",
             "--bundle", bundle, "--out", out, "--no-picture", "--no-html", "--provider", "cpu",
             "--any-stain"]  # fmt: skip
    assert run(place, infer, *words).exit_code == 0
    x, y = (np.concatenate([measured[section][i] for section in TRAINING]) for i in (0, 1))
    expected = definition(x, y, measured[QUERY][0])
    assert np.ptp(expected, axis=0).min() > 100 * TOLERANCE, "it is no constant"
    spots = list(read_section(find_sections(sections)[QUERY]).spot)
    np.testing.assert_allclose(anndata.read_h5ad(out)[spots].X, expected, rtol=0, atol=TOLERANCE)


def test_ten_heads_cost_one_pass_and_their_genes_cannot_be_others(place: Path) -> None:
    assert run(place, fit, *fit_words(place)).exit_code == 0
    # A lone section is divided into quarters, so that a blend has folds.
    for head in ("pca-ridge", "knn", "blend"):
        assert run(place, fit, *fit_words(place, "--sections", "A1", "--head", head)).exit_code == 0
        report = json.loads((place / "fit.json").read_text())
        assert (report["head"], report["encoded"], report["provider"]) == (head, 0, "")
        assert "only section" in report["judged_by"]
        content = read_weights_file(place / "model.pt")
        assert ("bank" in content) == (head != "pca-ridge") != ("gallery" in content)
    # Residuals of held-out quarters: the truth less what the others predict.
    assert abs(float(content["bank"]["expression"].mean())) < 0.3
    (place / "others.txt").write_text("".join(f"OTHER{i}\n" for i in range(GENES)))
    words = ["--ckpt", place / "model.pt", "--genes", place / "others.txt", "--out", place / "none"]
    refused = run(place, export, *words)
    assert refused.exit_code == 4 and "others.txt differ from those that" in refused.stderr
    assert not (place / "none").exists()


def test_too_many_neighbors_are_refused_before_the_encoder_takes_its_time(place: Path) -> None:
    words = fit_words(place, "--no-cache", "--head", "knn", "--k", str(2 * SPOTS + 1))
    refused = run(place, fit, *words)
    assert refused.exit_code == 4 and f"give --k of at most {2 * SPOTS}" in refused.stderr
    assert "tracing" not in refused.stderr
