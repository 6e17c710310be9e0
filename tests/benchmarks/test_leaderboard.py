"""`mclst-bench leaderboard`: the published head and scores, redone with scikit-learn and scipy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from scipy.stats import pearsonr

from mclst.benchmarks.cli import main
from mclst.benchmarks.leaderboard.samples import Sample
from mclst.benchmarks.leaderboard.score import fit_and_predict, score_fold, summarize
from mclst.training.fitting.ridge import benchmark_alpha

GENES = [f"G{i}" for i in range(6)]
SAMPLES = {"S0": 40, "S1": 50, "S2": 45, "S3": 30}


def write_counts(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write SAMPLE.h5ad with a further gene and spot; return features and ln(1 + counts) of the others."""
    rng = np.random.default_rng(0)
    slope = rng.normal(size=(12, len(GENES)))
    made = {}
    folder.mkdir(parents=True)
    for name, spots in SAMPLES.items():
        features = rng.normal(size=(spots, 12)) * np.arange(1, 13)
        counts = rng.poisson(np.exp(1 + 0.05 * features @ slope)).astype(np.float32)
        all_counts = np.concatenate([np.column_stack([np.ones(spots), counts[:, ::-1]]), np.ones((1, 7))])
        data = anndata.AnnData(
            all_counts.astype(np.float32),
            obs=pd.DataFrame(index=[*(f"b{i}" for i in range(spots)), "other"]),
            var=pd.DataFrame(index=["X", *GENES[::-1]]),
        )
        data.write_h5ad(folder / f"{name}.h5ad")
        made[name] = features, np.log1p(counts.astype(np.float64))
    return made


def write_features(folder: Path, made: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write SAMPLE.h5 as HEST does: barcodes as bytes, one column."""
    folder.mkdir(parents=True)
    for name, (features, _) in made.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["embeddings"] = features.astype(np.float32)
            barcodes = np.array([[f"b{i}".encode()] for i in range(len(features))])
            file["barcodes"] = barcodes


@pytest.fixture
def hest(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Two folds of one task in the layout of HEST-bench, and embeddings beside it."""
    task = tmp_path / "bench" / "IDC"
    made = write_counts(task / "adata")
    write_features(tmp_path / "embeddings" / "IDC" / "encoder" / "fp32", made)
    (task / "splits").mkdir()
    for number, test in enumerate((["S0"], ["S1", "S3"])):
        for side, names in (("test", test), ("train", [n for n in SAMPLES if n not in test])):
            rows = [f"{n},patches/{n}.h5,adata/{n}.h5ad" for n in names]
            (task / "splits" / f"{side}_{number}.csv").write_text(
                "sample_id,patches_path,expr_path\n" + "\n".join(rows)
            )
    (task / "var_50genes.json").write_text(json.dumps({"genes": GENES}))
    return tmp_path, made


def run(*words: Any) -> Result:
    return CliRunner().invoke(main, ["leaderboard", *map(str, words)])


def published(made: dict[str, Any], train: list[str], test: list[str], components: int) -> np.ndarray:
    """The published pipeline: standardized, principal components, ridge without an intercept."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipe = make_pipeline(StandardScaler(), PCA(n_components=components, svd_solver="full"))
    x = pipe.fit_transform(np.concatenate([made[s][0] for s in train]))
    y = np.concatenate([made[s][1] for s in train])
    head = Ridge(alpha=100 / (components * y.shape[1]), fit_intercept=False).fit(x, y)
    return np.asarray(head.predict(pipe.transform(np.concatenate([made[s][0] for s in test]))))


@pytest.mark.parametrize("components", [5, 12])
def test_hest_bench_is_the_published_pipeline(hest: tuple[Path, dict[str, Any]], components: int) -> None:
    root, made = hest
    words = [
        root / "bench",
        "--embeddings",
        root / "embeddings",
        "--work",
        root / "work",
        "--components",
        components,
    ]
    done = run(*words, "--name", "mine", "--json", root / "r.json", "--jobs", 2)
    assert done.exit_code == 0, done.output
    means = []
    result = json.loads((root / "r.json").read_text())
    for number, test in enumerate((["S0"], ["S1", "S3"])):
        predicted = published(made, [s for s in SAMPLES if s not in test], test, components)
        truth = np.concatenate([made[s][1] for s in test])
        r = [pearsonr(truth[:, g], predicted[:, g]).statistic for g in range(len(GENES))]
        means.append(np.mean(r))
        own = result["tasks"]["IDC"]["folds"][number]["genes"]
        np.testing.assert_allclose([own[g] for g in GENES], r, atol=1e-5)
    expected = f"{np.mean(means):.4f} ± {np.std(means):.4f}"
    assert done.stdout.splitlines() == [
        "| Model | IDC | Average |",
        "| --- | --- | --- |",
        f"| mine | {expected} | {np.mean(means):.4f} |",
    ]
    again = run(*words, "-q", "--name", "mine")
    assert again.stdout == done.stdout and "LEAK" not in again.stderr
    assert run(*words).stderr.count("done before") == 2
    path = next((root / "embeddings").glob("**/S0.h5"))
    path.touch()
    assert "done before" not in run(*words).stderr, "other features may be in it"


def test_an_intercept_is_the_training_mean() -> None:
    rng = np.random.default_rng(1)
    train = [Sample(rng.normal(5, 2, (30, 8)), rng.normal(3, 1, (30, 4))) for _ in range(2)]
    (predicted,) = fit_and_predict(train, [Sample(np.full((1, 8), 5.0), np.zeros((1, 4)))], alpha=1e12)
    np.testing.assert_allclose(
        predicted[0], np.concatenate([s.expression for s in train]).mean(axis=0), atol=1e-6
    )
    assert benchmark_alpha(256, 50) == pytest.approx(100 / 12_800)


def test_the_two_benchmarks_average_differently() -> None:
    rng = np.random.default_rng(2)
    test = [Sample(np.zeros((20, 1)), rng.normal(i, 1, (20, 3))) for i in (0, 5)]
    predicted = [s.expression + rng.normal(0, 2, s.expression.shape) for s in test]
    predicted[1][:, 2] = 4.0  # no r in that section
    per_section = [
        np.mean([pearsonr(p[:, g], s.expression[:, g]).statistic for g in kept])
        for p, s, kept in zip(predicted, test, ((0, 1, 2), (0, 1)), strict=True)
    ]
    stp = score_fold("stp", predicted, test, GENES[:3])
    assert stp["pcc"] == stp["pcc_per_section"] == pytest.approx(np.mean(per_section))
    hest = score_fold("hest", predicted, test, GENES[:3])
    assert hest["pcc"] > stp["pcc"], "differences between sections count"
    predicted[0][:, 2] = 4.0
    assert np.isnan(score_fold("hest", predicted, test, GENES[:3])["pcc"]), "as published"
    assert summarize([stp, {**stp, "pcc": stp["pcc"] + 2}])["pcc_sd"] == pytest.approx(1.0)


def test_stp_bench_scores_predictions_and_heads(tmp_path: Path) -> None:
    data, meta = tmp_path / "data", tmp_path / "input" / "hest" / "BRCA"
    made = write_counts(data / "st")
    meta.mkdir(parents=True)
    (meta / "hmhvg_200genes.json").write_text(json.dumps({"genes": GENES}))
    rows = ["S0,a,test,train", "S1,b,train,test", "S2,c,test,train", "S3,b,train,test"]
    (meta / "ids.csv").write_text("sample_id,case_id,fold_0,fold_1\n" + "\n".join(rows))
    rng = np.random.default_rng(3)
    for fold, names in enumerate((["S0", "S2"], ["S1", "S3"])):
        folder = tmp_path / "pred" / f"fold_{fold}"
        folder.mkdir(parents=True)
        for name in names:
            truth = made[name][1]
            predicted = anndata.AnnData((truth + rng.normal(0, 0.3, truth.shape)).astype(np.float32))
            predicted.obs_names, predicted.var_names = [f"b{i}" for i in range(len(truth))], GENES
            predicted.write_h5ad(folder / f"{name}.h5ad")
    common = [meta, "--data", data, "--work", tmp_path / "work"]
    done = run(*common, "--predictions", tmp_path / "pred", "--json", tmp_path / "r.json")
    assert done.exit_code == 0, done.output
    folds = []
    for fold, names in enumerate((["S0", "S2"], ["S1", "S3"])):
        own = []
        for name in names:
            p = anndata.read_h5ad(tmp_path / "pred" / f"fold_{fold}" / f"{name}.h5ad").X.astype(float)
            own.append(np.mean([pearsonr(p[:, g], made[name][1][:, g]).statistic for g in range(len(GENES))]))
        folds.append(np.mean(own))
    assert done.stdout.splitlines()[0] == "| Model | PCC | MAE |"
    assert f"| pred | {np.mean(folds):.4f} ± {np.std(folds):.4f} |" in done.stdout
    write_features(tmp_path / "emb", made)
    head = run(*common, "--embeddings", tmp_path / "emb", "--components", 12)
    assert head.exit_code == 0 and head.stdout.splitlines()[2].startswith("| emb | 0.")
    (meta / "ids.csv").write_text("sample_id,case_id,fold_0\nS0,a,test\nS1,a,train\n")
    leaking = run(*common, "--embeddings", tmp_path / "emb")
    assert "LEAK: hest/BRCA, fold 0: case a is in training and test" in leaking.stderr


def test_a_bundle_encodes_patches_once(small_bundle: Path, hest: tuple[Path, dict[str, Any]]) -> None:
    root, made = hest
    (root / "bench" / "IDC" / "patches").mkdir()
    rng = np.random.default_rng(4)
    for name, (features, _) in made.items():
        with h5py.File(root / "bench" / "IDC" / "patches" / f"{name}.h5", "w") as file:
            file["img"] = rng.integers(0, 256, (len(features), 32, 32, 3)).astype(np.uint8)
            file["barcode"] = np.array([[f"b{i}".encode()] for i in range(len(features))])
    words = [root / "bench", "--bundle", small_bundle, "--work", root / "work", "--provider", "cpu"]
    done = run(*words)
    assert done.exit_code == 0, done.output
    kept = sorted((root / "work" / "features").glob("*/IDC/*.h5"))
    assert [path.stem for path in kept] == sorted(SAMPLES)
    (root / "bench" / "IDC" / "patches" / "S0.h5").unlink()
    assert run(*words, "--components", 3).exit_code == 0, "features are read again, not made"


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda task: (task / "var_50genes.json").unlink(), "holds no list of genes"),
        (lambda task: (task / "var_50genes.json").write_text('{"genes": [1]}'), "no list of names"),
        (lambda task: (task / "var_50genes.json").write_text('{"genes": ["NO"]}'), "lacks gene NO"),
        (lambda task: (task / "splits" / "train_0.csv").unlink(), "train_0.csv cannot be read"),
        (lambda task: (task / "splits" / "train_0.csv").write_text("a,b\n1,2\n"), "has no column sample_id"),
        (lambda task: [p.unlink() for p in (task / "splits").iterdir()], "holds no test_0.csv"),
        (lambda task: (task / "adata" / "S0.h5ad").unlink(), "S0.h5ad is missing"),
        (lambda task: (task / "adata" / "S0.h5ad").write_text("no"), "is not an .h5ad"),
        (lambda task: next(task.parents[1].glob("embeddings/**/S0.h5")).unlink(), "not exactly one S0.h5"),
        (lambda task: next(task.parents[1].glob("embeddings/**/S0.h5")).write_text("no"), "cannot be read"),
    ],
)
def test_a_benchmark_that_is_damaged_is_refused(
    hest: tuple[Path, dict[str, Any]], change: Any, fragment: str
) -> None:
    root, _ = hest
    change(root / "bench" / "IDC")
    done = run(root / "bench", "--embeddings", root / "embeddings", "--work", root / "work")
    assert done.exit_code == 4 and fragment in done.stderr and "Traceback" not in done.output, done.output
    assert done.stdout == ""


def test_usage_is_refused(hest: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    root, _ = hest
    assert run(root / "bench").exit_code == 2
    for words, fragment in (
        ([tmp_path / "embeddings"], "is no benchmark"),
        ([root / "bench", "--task", "NO"], "has no task NO; there are IDC"),
    ):
        done = run(*words, "--embeddings", root / "embeddings", "--work", root / "work")
        assert done.exit_code == 4 and fragment in done.stderr
    (root / "bench" / "IDC" / "splits" / "train_0.csv").write_text(
        "sample_id,patches_path,expr_path\nS0,p,adata/S0.h5ad\nS1,p,adata/S1.h5ad"
    )
    leaking = run(root / "bench", "--embeddings", root / "embeddings", "--work", root / "work")
    assert "LEAK: IDC, fold 0: sample S0 is in training and test" in leaking.stderr
