"""Real Space Ranger folders, each as far as it goes: train, export, infer, evaluate, or be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from refusals import assert_refused
from training_runs import QUICK, run

from mclst.evaluation.cli import main as evaluate
from mclst.export.bundling import export_bundle
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.cli.infer import main as infer

VISIUM = Path(__file__).resolve().parents[2].parent / "shared" / "visium"
TRAIN = (*QUICK, "--epochs", "1", "--positions", "none")


def real(name: str) -> Path:
    if not (VISIUM / name).is_dir():
        pytest.skip(f"reference data visium/{name} are not beside the checkout")
    return VISIUM / name


def call(command: Any, *words: Any) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on squidpy_test with Space Ranger's own lowres picture, and exported."""
    folder, out = real("squidpy_test"), tmp_path_factory.mktemp("visium")
    picture = folder / "spatial/tissue_lowres_image.png"
    done = run(folder, *TRAIN, "--image", f"squidpy_test={picture}", "--out", out / "model.pt")
    assert done.exit_code == 0, done.output
    assert "taken: tissue_lowres_image.png, 22.2 times coarser than the slide, and cells" in done.stderr
    export_bundle(out / "model.pt", out / "bundle", parity_tiles=4)
    return out / "bundle"


def test_squidpys_folder_goes_from_training_to_an_evaluated_map(bundle: Path, tmp_path: Path) -> None:
    folder = real("squidpy_test")
    picture = folder / "spatial/tissue_lowres_image.png"
    out = tmp_path / "squidpy_test.h5ad"
    words = ("--bundle", bundle, "--out", out, "--no-picture", "--no-html", "--no-cache", "--json", "-")
    done = call(infer, picture, "--spots", folder, *words)
    assert done.exit_code == 0 and "times 0.045 for tissue_lowres_image.png" in done.stderr, done.output
    made = anndata.read_h5ad(out)
    positions = pd.read_csv(folder / "spatial/tissue_positions_list.csv", header=None, index_col=0)
    expected = positions.loc[made.obs_names, [5, 4]] * 0.045004502
    np.testing.assert_allclose(made.obsm["spatial"], expected)
    assert np.isfinite(made.X).all() and len(made) == 100
    assert made.var_names.tolist() == open_bundle(bundle).bank.genes.tolist()
    given = ("--truth", folder, "--image", f"squidpy_test={picture}", "--baselines", "no-encoder")
    done = call(evaluate, out, *given, "--bundle", bundle, "--figures", "none", "--json", tmp_path / "e.json")
    assert done.exit_code == 0, done.output
    assert "squidpy_test" in done.stderr and (tmp_path / "squidpy_test.eval.csv").is_file()
    judged = json.loads((tmp_path / "e.json").read_text())
    assert "squidpy_test" in json.dumps(judged)


def test_a_picture_of_one_color_trains_nothing(tmp_path: Path) -> None:
    """Its hires picture is black."""
    folder = real("squidpy_test")
    done = run(folder, *TRAIN, "--hires", "-q", "--out", tmp_path / "model.pt")
    assert_refused(
        done, 4, ("tissue_hires_image.png has one color under all its 100 spots", "give its slide")
    )
    assert not list(tmp_path.iterdir())


def test_a_folder_with_a_part_of_its_picture_asks_for_the_slide(small_bundle: Path, tmp_path: Path) -> None:
    folder = real("sfe_sample01")
    done = run(folder, *TRAIN, "-q", "--out", tmp_path / "model.pt")
    assert_refused(
        done, 4, ("section sfe_sample01", "has no image", "--hires to take tissue_hires_image.png")
    )
    words = ("(45 x 77 px), as are 11 more of 12", "but a part: give the slide")
    done = run(folder, *TRAIN, "--hires", "-q", "--out", tmp_path / "model.pt")
    assert_refused(done, 4, words)
    picture = folder / "spatial/tissue_hires_image.png"
    done = call(
        infer, picture, "--spots", folder, "--bundle", small_bundle, "-q", "--out", tmp_path / "m.h5ad"
    )
    assert_refused(done, 4, words)


def test_a_folder_without_counts_is_predicted_and_nothing_else(small_bundle: Path, tmp_path: Path) -> None:
    folder = real("spatial_gradients")
    lacks = ("there are positions of spots and no counts; copy filtered_feature_bc_matrix.h5",)
    done = run(folder, *TRAIN, "--hires", "-q", "--out", tmp_path / "model.pt")
    assert_refused(done, 4, lacks)
    picture, out = folder / "spatial/tissue_hires_image.png", tmp_path / "m.h5ad"
    words = ("--bundle", small_bundle, "--no-picture", "--no-html", "--no-cache", "-q", "--out", out)
    done = call(infer, picture, "--spots", folder, *words)
    assert done.exit_code == 0, done.output
    assert len(anndata.read_h5ad(out)) == 1937
    assert_refused(call(evaluate, out, "--truth", folder, "-q"), 4, lacks)
