"""mclst-bench accuracy: folds, sweeps, resuming, and scores that are mclst-train's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from small_model import Small
from training_runs import QUICK
from training_runs import run as run_train

from mclst.benchmarks.accuracy.cross_validation import parse_sweep, with_setting
from mclst.benchmarks.accuracy.folds import MEASURES, make_folds, summarize
from mclst.benchmarks.cli import main
from mclst.runtime.errors import InputError
from mclst.sections.errors import SectionError
from mclst.training.settings import TrainConfig

TRAIN = " ".join([*QUICK, "--epochs", "1"])


def run(small: Small, work: Path, *words: Any) -> Result:
    fixed = [small.folder, "--train", TRAIN, "--work", work, "--json", "-"]
    unit = [] if "--leave-out" in words or "--patient" in words else ["--leave-out", "section"]
    return CliRunner().invoke(main, [str(word) for word in ["accuracy", *fixed, *unit, *words]])


def test_folds_leave_out_a_section_or_a_patient() -> None:
    names = ["A1", "A2", "B1", "C1", "C2"]
    assert [fold.left_out for fold in make_folds(names, "section", "")] == [(name,) for name in names]
    by_patient = make_folds(names, "patient", r"^(.*?)\d+$")
    assert [(fold.name, fold.left_out) for fold in by_patient] == [
        ("A", ("A1", "A2")),
        ("B", ("B1",)),
        ("C", ("C1", "C2")),
    ]
    replicates = make_folds(["P2_rep1", "P2_rep2", "P10_rep1"], "patient", r"P\d+")
    assert [fold.name for fold in replicates] == ["P2", "P10"]
    with pytest.raises(SectionError, match="section X does not match"):
        make_folds(["A1", "X"], "patient", r"(\d)")
    with pytest.raises(InputError, match="would be left out together"):
        make_folds(["A1", "A2"], "patient", r"^[A-Z]")


def test_sweeps_change_what_they_name() -> None:
    base = TrainConfig()
    assert parse_sweep("k=5,10") == ("k", [5, 10])
    assert with_setting(base, "k", 5).settings.retrieval.k == 5
    assert with_setting(base, "distance", "cosine").settings.retrieval.distance == "cosine"
    assert with_setting(base, "normalization", "spot-wise").settings.normalization.expression == "spot-wise"
    assert with_setting(base, "context", 8).settings.context.spots == 8
    assert with_setting(base, "lambda", 1.0).image_weight == 1
    without = with_setting(base, "positions", "none")
    assert (without.positions, without.settings.context.positions) == ("none", "none")
    assert with_setting(without, "positions", "naive").settings.context.positions == "array"
    for wrong in ("k", "k=a", "tint=1"):
        with pytest.raises(ValueError, match="--sweep"):
            parse_sweep(wrong)


def test_mean_and_spread_are_over_folds() -> None:
    rows = pd.DataFrame(
        [
            {"value": "v", "fold": fold, **dict.fromkeys(MEASURES, number)}
            for fold, number in (("A", 1.0), ("A", 3.0), ("B", 6.0))
        ]
    )
    (report,) = summarize(rows).to_dict(orient="records")
    assert report["folds"] == 2 and report["mse"] == 4.0
    assert report["mse_sd"] == pytest.approx(np.std([2.0, 6.0], ddof=1))
    rows.loc[0, "pcc_heg"] = None
    assert np.isnan(summarize(rows)["pcc_heg"][0])


def test_a_sweep_over_k_trains_once_and_scores_as_mclst_train_does(small: Small, tmp_path: Path) -> None:
    work = tmp_path / "work"
    done = run(small, work, "--sweep", "k=5,10", "--fold", "B1", "--fold", "A1")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [(line["value"], line["folds"]) for line in report["table"]] == [("5", 2), ("10", 2)]
    assert done.stderr.count("fold B1: loss") == 1 and "--leave-out patient keeps them out" in done.stderr
    rows_by_value = {(row["value"], row["fold"]): row for row in report["folds"]}
    assert rows_by_value["5", "B1"]["mse"] != rows_by_value["10", "B1"]["mse"]

    run_report = tmp_path / "run.json"
    words = [small.folder, *QUICK, "--epochs", "1", "--validation", "B1", "--json", run_report]
    assert run_train(*words, "--out", tmp_path / "model.pt").exit_code == 0
    (validation,) = json.loads(run_report.read_text())["validation"]
    for measure in MEASURES:
        assert rows_by_value["10", "B1"][measure] == pytest.approx(validation["B1"][measure], rel=1e-6)

    again = run(small, work, "--sweep", "k=5,10", "--fold", "B1", "--fold", "A1")
    assert again.stderr.count("done before") == 2 and json.loads(again.stdout) == report
    other = run(small, work, "--sweep", "k=5,7", "--fold", "B1")
    assert other.exit_code == 4 and "belongs to other settings or sections" in other.stderr


def test_a_sweep_over_precisions_scores_the_exported_graphs(small: Small, tmp_path: Path) -> None:
    words = ("--sweep", "precision=fp32,fp16,bf16,int8", "--fold", "B1")
    done = run(small, tmp_path / "work", *words)
    assert done.exit_code == 0, done.output
    rows_by_value = {row["value"]: row for row in json.loads(done.stdout)["folds"]}
    assert list(rows_by_value) == ["fp32", "fp16", "bf16", "int8"] and done.stderr.count("fold B1: loss") == 1
    alone = run(small, tmp_path / "other", "--fold", "B1")
    network = json.loads(alone.stdout)["folds"][0]
    for measure in MEASURES:
        assert rows_by_value["fp32"][measure] == pytest.approx(network[measure], rel=1e-4, abs=1e-5), measure
    apart = {
        value: abs(rows_by_value[value]["mse"] - rows_by_value["fp32"]["mse"]) for value in rows_by_value
    }
    assert all(apart[value] > 0 for value in ("fp16", "bf16", "int8"))
    assert max(apart.values()) < 0.2 * rows_by_value["fp32"]["mse"]
    assert run(small, tmp_path / "work", *words).stderr.count("done before") == 1


RECIPE = """\
name: tiny
builder: timm
architecture: test_vit
arguments: {img_size: 32}
width: 64
tile_px: 32
mean: [0.5, 0.5, 0.5]
std: [0.5, 0.5, 0.5]
"""


def test_a_training_starts_from_the_weights_it_is_given(small: Small, tmp_path: Path) -> None:
    """--weights and --init once did nothing here: every fold began at random weights."""
    import timm
    import torch

    (tmp_path / "tiny.yaml").write_text(RECIPE)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = timm.create_model("test_vit", img_size=32).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    torch.save({name: tensor * 1.5 for name, tensor in state.items()}, tmp_path / "others.pth")
    own = f"{TRAIN} --encoder {tmp_path / 'tiny.yaml'} --frozen --weights"
    words = ["--train", f"{own} {tmp_path / 'weights.pth'}", "--fold", "B1"]
    done = run(small, tmp_path / "work", *words)
    assert done.exit_code == 0, done.output

    report, model = tmp_path / "run.json", tmp_path / "model.pt"
    wanted = [small.folder, *words[1].split(), "--validation", "B1", "--json", report, "--out", model]
    assert run_train(*wanted).exit_code == 0
    (validation,) = json.loads(report.read_text())["validation"]
    scored = json.loads(done.stdout)
    for measure in MEASURES:
        assert scored["folds"][0][measure] == pytest.approx(validation["B1"][measure], rel=1e-6)
    assert run(small, tmp_path / "work", *words).stderr.count("done before") == 1
    words[1] = f"{own} {tmp_path / 'others.pth'}"
    other = run(small, tmp_path / "work", *words)
    assert other.exit_code == 4 and "belongs to other settings" in other.stderr


@pytest.mark.parametrize(
    ("axis", "trainings"),
    [
        ("distance=l1,l2,cosine", 1),
        ("normalization=gene-wise,spot-wise", 1),
        ("context=1,32", 1),
        ("positions=none,sinusoidal,naive", 3),
        ("encoder=test_resnet,test_efficientnet", 2),
    ],
)
def test_every_axis_changes_the_scores(small: Small, tmp_path: Path, axis: str, trainings: int) -> None:
    done = run(small, tmp_path / "work", "--sweep", axis, "--fold", "B1")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)["table"]
    name, _, values = axis.partition("=")
    assert [line["value"] for line in report] == values.split(",") and done.stderr.count("loss") == trainings
    assert len({line["mse"] for line in report}) == len(report), name


def test_leaving_a_patient_out_scores_all_its_sections(small: Small, tmp_path: Path) -> None:
    done = run(small, tmp_path / "work", "--patient", "^[A-Z]", "--sweep", "lambda=0,1")
    assert "leaving one patient out" in done.stderr
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    seen = {(row["value"], row["fold"], row["section"]) for row in report["folds"]}
    assert seen == {(v, f, s) for v in ("0.0", "1.0") for f, s in (("A", "A1"), ("A", "A2"), ("B", "B1"))}
    assert len({row["mse"] for row in report["folds"]}) == 6


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--sweep", "k=0"], 2, "--sweep k=0: retrieval.k is 0: input should be greater than or equal to 1"),
        (["--sweep", "k=5,49"], 4, "k is 49 and the training sections have 48 spots together"),
        (["--sweep", "encoder=resnet5000"], 2, "it is no image encoder of mclst or of this timm"),
        (["--train", f"{TRAIN} --init absent.pt"], 4, "absent.pt cannot be read"),
        (["--train", f"{TRAIN} --init x.pt", "--sweep", "encoder=resnet18"], 2, "without --sweep encoder"),
        (["--train", f"{TRAIN} --validation B1"], 2, "--validation of mclst-train does not go with --train"),
        (["--train", "--epochs '9"], 2, "cannot be split into words (No closing quotation)"),
        (["--sweep", "precision=fp8"], 2, "fp8 is none of fp32, fp16, bf16, int8"),
        (["--sweep", "positions=left"], 2, "--sweep positions=left"),
        (["--fold", "Z"], 2, "--fold Z is none of A1, A2, B1"),
        (["--train", "--epochs nine"], 2, "nine"),
        (["--leave-out", "patient", "--patient", "(Q)"], 4, "does not match --patient"),
    ],
)
def test_wrong_words_are_refused(
    small: Small, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    done = run(small, tmp_path / "work", *words)
    assert done.exit_code == code and message in done.stderr, done.output
    assert "Traceback" not in done.output
