"""mclst-bench accuracy for heads: scores against scikit-learn, folds, resuming; and folds in processes."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from scipy.stats import pearsonr
from small_model import Small, write_reference

from mclst.benchmarks.accuracy.command import accuracy
from mclst.benchmarks.accuracy.folds import default_unit
from mclst.benchmarks.accuracy.heads import parse_head_sweep
from mclst.benchmarks.accuracy.parallel import run_folds
from mclst.benchmarks.cli import main
from mclst.models.recipes.build import build_network
from mclst.models.recipes.find import find_recipe
from mclst.models.recipes.weights import load_weights
from mclst.runtime.errors import InputError, ResourceError
from mclst.runtime.features.cache import FeatureCache
from mclst.runtime.section_options import SectionFiles
from mclst.training.fitting import heads
from mclst.training.fitting.cli import main as fit
from mclst.training.fitting.command import read_fit_sections
from mclst.training.fitting.features import EncoderSetup, FeatureSource, samples_per_section
from mclst.training.fitting.ridge import Penalty, choose_penalty

ENCODER, SPOTS, ALPHA = "mobilenetv3_small_050", 12, 300.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sections of two patients, random weights of a small MobileNet, and a cache of features."""
    folder = tmp_path_factory.mktemp("heads")
    write_reference(folder / "sections", ("A1", "A2", "B1"), spots=SPOTS)
    torch.manual_seed(1)
    torch.save(build_network(find_recipe(ENCODER)).state_dict(), folder / "weights.pth")
    return folder


def encoder_words(place: Path) -> list[str]:
    return ["--encoder", ENCODER, "--weights", str(place / "weights.pth"), "--mpp", "0.25"]


def run(place: Path, *words: Any, of_fit: tuple[str, ...] = ()) -> Result:
    options = " ".join([*encoder_words(place), *of_fit])
    fixed = ["accuracy", place / "sections", "--fit", options, "--json", "-"]
    environment = {"MCLST_CACHE": str(place / "cache"), "MCLST_FEATURE_CACHE_GB": "1"}
    return CliRunner().invoke(main, [str(word) for word in [*fixed, *words]], env=environment)


def features(place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features and gene-wise expression of each section, as the cache has them."""
    monkeypatch.setenv("MCLST_CACHE", str(place / "cache"))
    monkeypatch.setenv("MCLST_FEATURE_CACHE_GB", "1")
    recipe = find_recipe(ENCODER)
    setup = EncoderSetup(recipe, load_weights(recipe, place / "weights.pth"))

    def progress(title: str, total: int) -> Any:
        return nullcontext(lambda n: None)

    paths = (place / "sections",)
    sections, _ = read_fit_sections(paths, SectionFiles(), None, (), None, 0.25, progress, print)
    with FeatureSource(setup, FeatureCache.of_user()) as source:
        samples = samples_per_section(setup.tile)
        made = {s.name: (source.encode(s, samples).values, s.expression("gene-wise")) for s in sections}
        assert source.encoded == 0, "all from the cache"
    return made


def test_ridge_is_scikit_learns_and_knn_is_brute_force(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    words = ("--leave-out", "section", "--sweep", "head=ridge,knn", "--work", tmp_path / "work")
    done = run(place, *words, of_fit=("--alpha", str(ALPHA), "--k", "5"))
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    rows = {(row["value"], row["section"]): row for row in report["folds"]}
    assert len(rows) == 6 and report["encoder"]["name"] == ENCODER
    assert "training saw other sections of the same patient" in done.stderr
    made = features(place, monkeypatch)
    for name in made:
        x, y = (np.concatenate([made[other][i] for other in made if other != name]) for i in (0, 1))
        scaler = StandardScaler().fit(x)
        predicted = Ridge(ALPHA).fit(scaler.transform(x), y).predict(scaler.transform(made[name][0]))
        r = [pearsonr(a, b).statistic for a, b in zip(predicted.T, made[name][1].T, strict=True)]
        assert rows["ridge", name]["pcc_acg"] == pytest.approx(np.mean(r), abs=1e-4)
        mse = np.square(predicted - made[name][1]).mean()
        assert rows["ridge", name]["mse"] == pytest.approx(mse, rel=1e-4)
        # As many components as spots less one hold all distances.
        z, own = scaler.transform(x), scaler.transform(made[name][0])
        basis = np.linalg.svd(z - z.mean(0), full_matrices=False)[2][: len(z) - 1]
        unit = [v @ basis.T / np.linalg.norm(v @ basis.T, axis=1, keepdims=True) for v in (own, z)]
        near = np.argsort(-(unit[0] @ unit[1].T), axis=1)[:, :5]
        mse = np.square(y[near].mean(axis=1) - made[name][1]).mean()
        assert rows["knn", name]["mse"] == pytest.approx(mse, rel=1e-3)


def test_nothing_is_chosen_on_the_section_left_out(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The penalties are those of mclst-fit on the other sections alone."""
    chosen: list[Penalty] = []

    def choose(errors: Any) -> Penalty:
        chosen.append(choose_penalty(errors))
        return chosen[-1]

    monkeypatch.setattr(heads, "choose_penalty", choose)
    alone = [place / "sections", "--hold-out", "B1", *encoder_words(place), "--out", tmp_path / "m.pt"]
    environment = {"MCLST_CACHE": str(place / "cache"), "MCLST_FEATURE_CACHE_GB": "1"}
    fitted = CliRunner().invoke(fit, [*map(str, alone), "--json", "-"], env=environment)
    assert fitted.exit_code == 0, fitted.output
    assert json.loads(fitted.stdout)["alpha"] == [*chosen[0].components, chosen[0].rest]
    free = run(place, "--fold", "B", "--work", tmp_path / "free")
    assert free.exit_code == 0 and "leaving one patient out" in free.stderr
    assert len(chosen) == 2 and chosen[1] == chosen[0]


def test_folds_run_at_once_are_kept_and_belong_to_their_settings(place: Path, tmp_path: Path) -> None:
    words = ("--leave-out", "section", "--sweep", "alpha=10,1000", "--work", tmp_path / "work")
    done = run(place, *words, "--jobs", 3)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [line["folds"] for line in report["table"]] == [3, 3] and report["sweep"] == "alpha"
    assert report["table"][0]["mse"] != report["table"][1]["mse"]
    again = run(place, *words)
    assert again.stderr.count("done before") == 3 and json.loads(again.stdout) == report
    other = run(place, *words, of_fit=("--expression-normalization", "spot-wise"))
    assert other.exit_code == 4 and "belongs to other settings or sections" in other.stderr
    next((tmp_path / "work").glob("*.json")).write_text("{")
    damaged = run(place, *words)
    assert damaged.exit_code == 4 and "holds no scores of a fold" in damaged.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("k", "give NAME="),
        ("tint=1", "give NAME="),
        ("k=0", "of at least 1"),
        ("head=svm", "is none of ridge"),
        ("alpha=0", "above 0"),
        ("alpha=nan", "above 0"),
        ("alpha=1,inf", "above 0"),
        ("context=nan", "at least 0"),
        ("context=-1", "at least 0"),
        ("k=a", "invalid literal"),
    ],
)
def test_a_wrong_sweep_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"--sweep.*{words}"):
        parse_head_sweep(text)


@pytest.mark.parametrize(
    ("of_fit", "sweep", "code", "says"),
    [
        ("", "k=5", 2, "--k belongs to --head knn and blend"),
        ("--k 5", None, 2, "--k belongs to --head knn and blend"),
        ("--head knn", "alpha=10", 2, "--alpha belongs to --head ridge"),
        ("", "context=0,300", 4, "--context is in µm; give --mpp"),
        ("--context 300", None, 4, "--context is in µm; give --mpp"),
    ],
)
def test_a_setting_that_does_nothing_or_cannot_be_is_refused(
    place: Path, tmp_path: Path, of_fit: str, sweep: str | None, code: int, says: str
) -> None:
    """Each gave rows of a setting that no head had, or a traceback."""
    fitted = shlex.join(["--encoder", ENCODER, "--weights", str(place / "weights.pth"), *of_fit.split()])
    words = ["accuracy", str(place / "sections"), "--work", str(tmp_path), "--fit", fitted]
    done = CliRunner().invoke(main, [*words, *([] if sweep is None else ["--sweep", sweep])])
    assert done.exit_code == code and says in done.stderr and "Traceback" not in done.output, done.output


def test_a_head_and_a_system_do_not_go_together(small: Small) -> None:
    done = CliRunner().invoke(main, ["accuracy", str(small.folder), "--fit", "", "--train", ""])
    assert done.exit_code == 2 and "not both" in done.stderr


def test_patients_are_the_default_where_all_names_tell_them() -> None:
    assert default_unit(["A1", "A2", "B1"]) == "patient"
    for names in (["A1", "A2"], ["A1", "X"], ["151673", "151674"]):
        assert default_unit(names) == "section"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in Python's place that writes its words down and fails for fold BAD."""
    path = tmp_path / "program"
    path.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@" > "$WORDS.$$"\nfor last; do :; done\n'
        'test "$last" = BAD && { echo "Error: its images are missing"; exit 4; } >&2\n'
        'test "$last" = LOST && { echo "gone" >&2; kill -9 $$; }\n'
        'echo "fold $last: loss 1" >&2\necho "  a table" >&2\n'
    )
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.setenv("WORDS", str(tmp_path / "words"))
    return tmp_path


def test_folds_in_processes_get_the_words_of_the_command(program: Path) -> None:
    said: list[str] = []
    words = ["sections", "--work", "w", "--train", "--epochs 2", "--leave-out", "section", "--patient", "x"]
    run_folds(["A", "B"], words, 2, said.append)
    assert sorted(said) == ["fold A: loss 1", "fold B: loss 1"]
    written = sorted(path.read_text().splitlines() for path in program.glob("words.*"))
    for fold, lines in zip("AB", written, strict=True):
        assert lines[:3] == ["-m", "mclst.benchmarks.cli", "accuracy"]
        parsed = accuracy.make_context("accuracy", lines[3:]).params
        assert parsed["fold_names"] == (fold,) and parsed["train_options"] == "--epochs 2"


@pytest.mark.parametrize(
    ("fold", "kind", "words"),
    [("BAD", InputError, "fold BAD: its images are missing"), ("LOST", ResourceError, "fold LOST: gone")],
)
def test_a_fold_that_fails_says_why(program: Path, fold: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        run_folds([fold, "A"], [], 1, lambda text: None)
