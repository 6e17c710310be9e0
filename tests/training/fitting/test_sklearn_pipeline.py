"""A fitted scikit-learn pipeline becomes a checkpoint that predicts the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Lasso, LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from mclst.export.inputs.checkpoint import open_checkpoint
from mclst.models.fitted import FeatureEncoder
from mclst.models.recipes.build import build_encoder
from mclst.models.recipes.find import find_recipe
from mclst.training import from_sklearn
from mclst.training.fitting.sklearn_pipeline import affine_of

RNG = np.random.default_rng(4)
X = RNG.normal(2, 3, (80, 20))
Y = X @ RNG.normal(size=(20, 5)) + RNG.normal(size=(80, 5))
LINEAR: list[Any] = [
    LinearRegression(),
    make_pipeline(StandardScaler(), PCA(7, whiten=True), Ridge(3.0)),
    make_pipeline(StandardScaler(with_mean=False), Lasso(0.1)),
    make_pipeline("passthrough", PLSRegression(4)),
    make_pipeline(StandardScaler(copy=False), Ridge(3.0)),
]


@pytest.mark.parametrize("pipeline", LINEAR, ids=lambda pipeline: str(pipeline).split("(")[0])
def test_a_linear_pipeline_is_one_affine_map(pipeline: Any) -> None:
    pipeline.fit(X.copy(), Y)
    rows = RNG.normal(2, 3, (30, 20))
    np.testing.assert_allclose(
        affine_of(pipeline, 20)(rows), pipeline.predict(rows.copy()), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        (RandomForestRegressor(3).fit(X, Y), "RandomForestRegressor is not a linear regression"),
        (make_pipeline(PolynomialFeatures(), Ridge()).fit(X, Y), "PolynomialFeatures is not a linear step"),
        (Ridge(), "Ridge is not fitted"),
        (Ridge().fit(X[:, :6], Y), "fitted on 6 features and the encoder gives 20"),
    ],
)
def test_others_are_refused_by_name(pipeline: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        affine_of(pipeline, 20)


def test_the_checkpoint_predicts_what_the_pipeline_predicts(tmp_path: Path) -> None:
    recipe = find_recipe("resnet18")
    torch.manual_seed(3)
    network = build_encoder(recipe)
    torch.save(network.model.state_dict(), tmp_path / "resnet18.pth")
    tiles = torch.rand(3, 3, 336, 336)
    with torch.inference_mode():
        features = FeatureEncoder(recipe, (1.0, 1.5), network).eval().encode_tiles(tiles).double().numpy()
    train = features.mean(0) + features.std(0) * RNG.normal(size=(40, 1024))
    pipeline = make_pipeline(StandardScaler(), Ridge(50.0)).fit(train, RNG.normal(3, 1, (40, 4)))
    genes = ["ERBB2", "GNAS", "FASN", "CD24"]
    words: dict[str, Any] = {
        "encoder": "resnet18",
        "weights": tmp_path / "resnet18.pth",
        "views": (1.0, 1.5),
        "out": tmp_path / "model.pt",
    }
    with pytest.raises(ValueError, match="predicts 4 values and genes names 3"):
        from_sklearn(pipeline, genes=genes[:3], **words)
    checkpoint = open_checkpoint(from_sklearn(pipeline, genes=genes, **words))
    assert (checkpoint.system.name, checkpoint.genes, checkpoint.metadata["genes"]) == ("fitted", 4, genes)
    with torch.inference_mode():
        actual = checkpoint.network(heads=None).encode_tiles(tiles).numpy()
    np.testing.assert_allclose(actual, pipeline.predict(features), rtol=0, atol=1e-4)
