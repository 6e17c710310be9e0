"""Planted leaks are caught: a section under two names, its spots in the bank, its tiles, its patient."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from small_model import Small, write_reference

from mclst.evaluation.baselines.measured_section import MeasuredSection, read_measured
from mclst.evaluation.baselines.stain import Stain
from mclst.evaluation.cli import main
from mclst.evaluation.leakage import duplicate_rows, find_leaks
from mclst.runtime.bundle.bank import Bank
from mclst.sections.errors import SectionError
from mclst.sections.formats.reference import find_sections, read_section
from mclst.sections.normalize import SectionTotals, gene_wise
from mclst.sections.patients import known_patients

GENES = [f"GENE{i}" for i in range(60)]


def measured(name: str, seed: int, spots: int = 50) -> MeasuredSection:
    rng = np.random.default_rng(seed)
    level = np.random.default_rng(seed // 10).gamma(1.0, 6.0, 60)  # a patient's: seeds of one ten
    counts = rng.poisson(level, (spots, 60)).astype(np.float32)
    spot = tuple(f"{i}x{seed}" for i in range(spots))
    totals = SectionTotals.of_counts(counts, counts.sum(1), counts.shape[1])
    return MeasuredSection(name, spot, counts, gene_wise(counts), totals, None, None, None)


def leaks_of(
    test: MeasuredSection, training: list[MeasuredSection], **options: object
) -> list[tuple[str, str]]:
    names = [section.name for section in training]
    settings: dict[str, object] = {"genes": GENES, "names": names, "patients": {}, "sure": True, **options}
    return [(leak.severity, leak.text) for leak in find_leaks(test, training, **settings)]  # type: ignore[arg-type]


def test_a_clean_split_has_no_leak() -> None:
    training = [measured("B1", 10), measured("C1", 20), measured("D1", 30)]
    patients = {"A1": "A", "B1": "B", "C1": "C", "D1": "D"}
    assert leaks_of(measured("A1", 0), training, patients=patients) == []


def test_a_section_under_another_name_is_a_copy() -> None:
    test = measured("A1", 0)
    order = np.random.default_rng(1).permutation(len(test))
    copy = dataclasses.replace(test, name="Z9", counts=test.counts[order], spot=tuple(f"x{i}" for i in order))
    (leak,) = leaks_of(test, [measured("B1", 10), copy])
    assert leak == ("leak", "training section Z9 is a copy of it: 100% of its spots have equal counts there")
    part = np.concatenate([test.counts[:10], measured("B1", 10).counts[:40]])
    (leak,) = leaks_of(test, [dataclasses.replace(copy, counts=part)])
    assert "20% of its spots have a spot of equal counts in training section Z9" in leak[1]
    (note,) = leaks_of(test, [copy], sure=False)
    assert note[0] == "note"


def test_spots_in_the_bank_are_found_by_name_and_by_expression() -> None:
    test, other = measured("A1", 0), measured("B1", 10)
    expression = np.concatenate([other.expression, test.expression[:20]])
    section = np.array(["B1"] * 50 + ["A1"] * 20)
    spot = np.array([*other.spot, *test.spot[:20]])
    bank = Bank(np.zeros((70, 4), np.float32), expression, np.array(GENES), spot, section)
    leaks = leaks_of(test, [other], names=["B1", "A1"], bank=bank)
    assert ("leak", "section A1 itself is among the training sections") in leaks
    assert ("leak", "20 of its 50 spots are in the bundle's bank") in leaks
    renamed = dataclasses.replace(bank, section=np.array(["B1"] * 50 + ["Q7"] * 20))
    (leak,) = leaks_of(test, [other], names=["B1", "Q7"], bank=renamed)
    assert leak[1] == "40% of its spots have a spot of equal expression in training section Q7"
    shuffled = np.random.default_rng(2).permutation(60)
    other_order = dataclasses.replace(
        renamed, expression=expression[:, shuffled], genes=np.array(GENES)[shuffled]
    )
    assert leaks_of(test, [other], names=["B1", "Q7"], bank=other_order) == [leak]


def test_the_same_patient_is_told_by_name_or_by_likeness() -> None:
    test, sibling = measured("A1", 0), measured("A2", 1)
    others = [measured(f"{name}1", 10 * i) for i, name in enumerate("BCDF", start=1)]
    patients = known_patients(["A1", "A2", "B1", "C1", "D1", "F1"])
    leaks = leaks_of(test, [sibling, *others], patients=patients, sentences="file")
    assert leaks[0][0] == "leak" and "1 other section of patient A by name (A2)" in leaks[0][1]
    assert leaks[1][0] == "note" and "sentences run over section borders" in leaks[1][1]
    assert len(leaks_of(test, [sibling, *others], patients=patients, sentences="section")) == 1
    hidden = dataclasses.replace(sibling, name="E1")
    (note,) = leaks_of(test, [hidden, *others], patients={**patients, "E1": "E"})
    assert note[0] == "note" and "resembles training section E1's" in note[1]


def test_patients_are_known_where_names_tell_them() -> None:
    known = known_patients(["A1", "A2", "151673", "core", "TNBC_3", "TNBC 4", "P2_12"])
    assert known == {"A1": "A", "A2": "A", "TNBC_3": "TNBC", "TNBC 4": "TNBC", "P2_12": "P2"}
    assert known_patients(["P1_a", "P2_b"], r"^P\d") == {"P1_a": "P1", "P2_b": "P2"}
    with pytest.raises(SectionError, match="section X does not match --patient"):
        known_patients(["X"], r"(\d)")


def test_equal_tiles_of_two_names_are_found() -> None:
    rng = np.random.default_rng(3)
    tiles = rng.integers(0, 256, (50, 144)).astype(np.float32)
    later = np.concatenate([1.1 * tiles[:25] + rng.normal(0, 2, (25, 144)), rng.integers(0, 256, (25, 144))])
    flat = np.full((50, 144), 240.0, np.float32)
    values = np.zeros((50, 3))
    test, training = measured("A1", 0), [measured("B1", 10), measured("C1", 20)]
    stains = {
        "A1": Stain(values, tiles),
        "B1": Stain(values, later.astype(np.float32)),
        "C1": Stain(values, flat),
    }
    (leak,) = leaks_of(test, training, stains=stains)
    assert leak == ("leak", "50% of its tiles are nearly equal to tiles of training section B1")
    blank = {"A1": Stain(values, flat), "B1": Stain(values, flat)}
    assert leaks_of(test, training, stains=blank) == []


def test_near_empty_spots_equal_none() -> None:
    empty = np.zeros((3, 60), np.float32)
    empty[:, 0] = 1
    assert not duplicate_rows(empty, empty).any()
    full = measured("A1", 0).counts
    np.testing.assert_array_equal(duplicate_rows(full, 3 * full[5:6] + 1), np.arange(50) == 5)


def run(*args: object) -> Result:
    """Without the baseline by an encoder, which has its own tests and takes seconds."""
    quick = [] if "--baselines" in args else ["--baselines", "no-encoder"]
    return CliRunner().invoke(main, [*map(str, args), *quick])


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A map of A1, and a folder `truth` of the sections A1, B1, C1 and D1, which is A1 once more."""
    truth = tmp_path / "truth"
    write_reference(truth, ("A1", "B1", "C1", "D1"), spots=40)
    for name in ("counts/A1.tsv", "spots/A1_selection.tsv", "images/A1.png"):
        shutil.copy(truth / name, truth / name.replace("A1", "D1"))
    section = read_section(find_sections(truth)["A1"])
    expression = gene_wise(section.counts.toarray())
    noise = np.random.default_rng(0).normal(0, 0.05, expression.shape)
    result = anndata.AnnData(
        (expression + noise).astype(np.float32),
        obs=pd.DataFrame(index=section.spot),
        var=pd.DataFrame(index=section.genes),
        uns={"mclst": {"bundle": {"normalization_expression": "gene-wise"}, "slide": {"mpp": 4.0}}},
    )
    result.obsm["spatial"] = section.xy_px
    result.write_h5ad(tmp_path / "A1.h5ad")
    return tmp_path


@pytest.mark.slow
def test_eval_says_the_leak_before_any_number(planted: Path) -> None:
    page = planted / "A1.eval.html"
    common = [
        planted / "A1.h5ad",
        "--truth",
        planted / "truth",
        "--figures",
        "none",
        "--json",
        planted / "e.json",
    ]
    done = run(*common, "--training", "B1-D1")
    assert done.exit_code == 0, done.output
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    copied = "LEAK: A1: training section D1 is a copy of it: "
    assert lines[0].startswith(copied)
    assert lines[1] == "LEAK: A1: 100% of its tiles are nearly equal to tiles of training section D1"
    text = page.read_text()
    assert 'role="alert"' in text and text.index(copied) < text.index("The map ")
    result = json.loads((planted / "e.json").read_text())
    assert [leak["severity"] for leak in result["leaks"]][:2] == ["leak", "leak"] and result["training"][
        "known"
    ]
    table = pd.read_csv(planted / "A1.eval.baselines.csv")
    assert table["against"].unique().tolist() == [
        "training mean",
        "smooth field",
        "nearest spots",
        "stain and nuclei",
    ]
    assert (table["outcome"] == "better").any() and set(table["gene_set"]) == {"all"}
    clean = run(*common, "--training", "B1,C1", "--overwrite", "-q")
    assert clean.exit_code == 0 and clean.stderr == ""
    assert json.loads((planted / "e.json").read_text())["leaks"] == []


@pytest.mark.slow
def test_eval_reads_the_bank_of_a_bundle(small: Small, small_bundle: Path, planted: Path) -> None:
    """The committed bundle's bank holds sections A1 and A2 of other counts than this A1."""
    done = run(
        planted / "A1.h5ad",
        "--truth",
        planted / "truth",
        "--bundle",
        small_bundle,
        "--figures",
        "none",
        "--baselines",
        "no-image",
    )
    assert done.exit_code == 0, done.output
    assert "LEAK: A1: section A1 itself is among the training sections" in done.stderr
    assert "1 other section of patient A by name (A2)" in done.stderr
    assert "no training section is at hand" in (planted / "A1.eval.html").read_text()
    truth = planted / "truth"
    again = run(planted / "A1.h5ad", "--truth", truth, "--bundle", truth, "--overwrite")
    assert again.exit_code == 4 and "Traceback" not in again.output
    for words, fragment in ((["--training", "Q9"], "Q9"), (["--patient", "(X)"], "does not match --patient")):
        done = run(planted / "A1.h5ad", "--truth", planted / "truth", "--overwrite", *words)
        assert done.exit_code == 4 and fragment in done.stderr and "Traceback" not in done.output


@pytest.mark.slow
def test_another_map_is_a_baseline_that_the_verdict_counts(planted: Path) -> None:
    good = anndata.read_h5ad(planted / "A1.h5ad")
    bad = good.copy()
    bad.X = good.X + np.random.default_rng(1).normal(0, 2, good.shape).astype(np.float32)
    bad[:, ::-1][3:].write_h5ad(planted / "A1.bad.h5ad")
    words = ["--truth", planted / "truth", "--section", "A1", "--training", "B1,C1", "--figures", "none"]
    words += ["--baselines", "no-image", "--json", "-", "-q"]
    done = run(planted / "A1.bad.h5ad", "--baseline", f"ridge={planted / 'A1.h5ad'}", *words)
    assert done.exit_code == 0, done.output
    rows = [row for row in json.loads(done.stdout)["against"] if row["against"] == "ridge"]
    assert [row["outcome"] for row in rows] == ["worse"] and rows[0]["kind"] == "baseline"
    assert "is worse than the baseline “ridge”" in (planted / "A1.bad.eval.html").read_text()
    good.uns["mclst"]["bundle"]["normalization_expression"] = "spot-wise"
    good.write_h5ad(planted / "A1.other.h5ad")
    for baseline, code in ((f"ridge={planted / 'A1.other.h5ad'}", 4), (str(planted / "A1.h5ad"), 2)):
        done = run(planted / "A1.bad.h5ad", "--baseline", baseline, *words, "--overwrite")
        assert done.exit_code == code and "Traceback" not in done.output


@pytest.mark.slow
def test_a_section_in_the_bank_of_a_real_evaluation_is_read(planted: Path) -> None:
    section = read_measured(find_sections(planted / "truth")["A1"], ["GENE3", "GENE0"], "gene-wise")
    assert section.expression.shape == (40, 2) and section.xy is not None and section.image is not None
    assert section.rows_of([section.spot[7]]).tolist() == [7]
