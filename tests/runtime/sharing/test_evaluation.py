"""What mclst-eval measured goes into the manifest and the card, or is refused in a sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from refusals import assert_refused

from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.cli.bundle import main

MEASURED = Path(__file__).resolve().parents[2] / "data" / "small" / "eval.json"


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


def result(folder: Path, change: Any = lambda content: None) -> Path:
    content = json.loads(MEASURED.read_text())
    change(content)
    path = folder / "eval.json"
    path.write_text(json.dumps(content))
    return path


def test_the_card_holds_what_was_measured(bundle: Path, tmp_path: Path) -> None:
    before = open_bundle(bundle)
    path = result(tmp_path)
    done = run("add-evaluation", bundle, path, "--url", "https://example.org/eval.json")
    assert done.exit_code == 0 and done.stdout.strip() == str(bundle), done.output
    after = open_bundle(bundle)
    assert after.manifest.files == before.manifest.files and after.sha256 != before.sha256
    assert after.manifest.about is not None and after.manifest.about.evaluation is not None
    evaluation = after.manifest.about.evaluation
    assert evaluation.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    mean = json.loads(path.read_text())["methods"]["map"]["mean"]
    expected = [mean[key] for key in ("pcc_acg", "pcc_heg", "mse", "mae")]
    assert [metric.value for metric in evaluation.metrics] == pytest.approx(expected, rel=1e-5)
    card = run("card", bundle, "--out", "-").stdout
    assert (
        "section B1 (24 spots), not in the bank; by mclst-eval" in card
        and "https://example.org/eval.json" in card
    )
    assert f"mean Pearson r per gene (ACG) {mean['pcc_acg']:.4g}" in card
    (bundle / "README.md").write_text("old")
    again = run("add-evaluation", bundle, path)
    assert again.exit_code == 0 and "write it again with mclst-bundle card" in " ".join(again.stderr.split())


def _no_methods(content: dict[str, Any]) -> None:
    del content["methods"]


def _two_methods(content: dict[str, Any]) -> None:
    content["methods"]["other"] = content["methods"]["map"]


def _of_the_bank(content: dict[str, Any]) -> None:
    sections = content["methods"]["map"]["sections"]
    sections["A1"] = sections.pop("B1")


def _of_many(content: dict[str, Any]) -> None:
    sections = content["methods"]["map"]["sections"]
    sections.update({f"patient-{i:04}": sections["B1"] for i in range(999)})


def _of_a_long_name(content: dict[str, Any]) -> None:
    sections = content["methods"]["map"]["sections"]
    sections["B" * 5000] = sections.pop("B1")


def _no_scores(content: dict[str, Any]) -> None:
    content["methods"]["map"]["mean"] = {"pcc_acg": None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_no_methods, "no result of mclst-eval"),
        (_two_methods, "name one with --method"),
        (_of_the_bank, "section A1, which the bank"),
        (_no_scores, "holds no scores"),
        (_of_a_long_name, "protocol"),
    ],
)
def test_what_is_no_evaluation_of_held_out_sections_is_refused(
    bundle: Path, tmp_path: Path, change: Any, words: str
) -> None:
    before = (bundle / "manifest.json").read_bytes()
    assert_refused(run("add-evaluation", bundle, result(tmp_path, change)), 4, (words,))
    assert_refused(run("add-evaluation", bundle, tmp_path / "none.json"), 4, ("none.json cannot be read",))
    assert (bundle / "manifest.json").read_bytes() == before


def test_many_sections_are_counted(bundle: Path, tmp_path: Path) -> None:
    assert run("add-evaluation", bundle, result(tmp_path, _of_many)).exit_code == 0
    about = open_bundle(bundle).manifest.about
    assert about is not None and about.evaluation is not None
    assert about.evaluation.protocol == "1,000 sections (24,000 spots), not in the bank; by mclst-eval"


def test_an_empty_address_is_refused(bundle: Path, tmp_path: Path) -> None:
    done = run("add-evaluation", bundle, result(tmp_path), "--url", "")
    assert_refused(done, 4, ("eval.json", "url"))


def test_an_evaluation_of_a_training_section_is_refused(bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "trained_on": ["B1"]}))
    done = run("add-evaluation", bundle, result(tmp_path))
    assert_refused(done, 4, ("section B1, which", "was trained on"))


def test_a_signed_bundle_is_not_changed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.sig").write_text("{}")
    assert_refused(run("add-evaluation", bundle, result(tmp_path)), 4, ("is signed", "sign it again"))
