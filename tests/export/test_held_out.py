"""Exported bundles are calibrated: by a checkpoint's out-of-fold predictions, or by leaving sections out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from calibrated import held_out
from click.testing import CliRunner
from fitted_checkpoint import fitted_checkpoint
from small_model import TILE_PX, Small
from system_cases import SYSTEM_CASES, small_network

from mclst.export.bundling import export_bundle
from mclst.export.calibrate import calibrate
from mclst.export.held_out import Measured, network_groups, stored_groups, write_calibration
from mclst.export.inputs.bank import ReferenceSection
from mclst.export.inputs.references import SectionImage
from mclst.kernels.retriever import Retriever
from mclst.runtime.bundle.bank import Bank
from mclst.runtime.bundle.bundle import Bundle, open_bundle
from mclst.runtime.bundle.calibration import read_calibration
from mclst.runtime.bundle.manifest import CALIBRATION, Settings, Tile
from mclst.runtime.cli.infer import main as infer
from mclst.runtime.errors import CheckpointError
from mclst.runtime.providers.opening import open_session
from mclst.runtime.slide.open import open_slide
from mclst.runtime.trust.calibration import OF_BANK, OF_NETWORK, SHAPES
from mclst.sections.formats.reference import find_sections, read_section
from mclst.sections.normalize import SectionTotals, normalize
from mclst.sections.tables.spots import read_spots


def fitted(step: int = 1, *, bank: bool = False, spots: int = 60) -> tuple[dict[str, Any], list[Any]]:
    """What a fitted head's checkpoint holds, of which a calibration needs a part."""
    groups = held_out(1, groups=3, spots=spots)
    embedding = torch.from_numpy(np.concatenate([group.embedding for group in groups]).astype(np.float32))
    records = [
        {
            "section": group.group,
            "fold": group.group,
            "prediction": torch.from_numpy(group.prediction[::step].astype(np.float16)),
            "truth": torch.from_numpy(group.truth[::step].astype(np.float16)),
        }
        for group in groups
    ]
    content: dict[str, Any] = {
        "out_of_fold": records,
        "fit": {"block_sizes": [spots] * len(groups)},
    }
    content |= {"bank": {"embedding": embedding}} if bank else {"gallery": embedding}
    return content, groups


@pytest.mark.parametrize("bank", [True, False])
@pytest.mark.parametrize("step", [1, 4])
def test_a_fitted_heads_predictions_meet_their_embeddings(step: int, bank: bool) -> None:
    metadata, groups = fitted(step, bank=bank)
    stored, kind = stored_groups(metadata)
    assert kind == "section" and [group.group for group in stored] == ["S0", "S1", "S2"]
    for one, other in zip(stored, groups, strict=True):
        np.testing.assert_allclose(one.embedding, other.embedding[::step], rtol=1e-6)
        np.testing.assert_allclose(one.truth, other.truth[::step], rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(one.prediction, other.prediction[::step], rtol=2e-3, atol=2e-3)


def test_a_step_that_is_not_stored_must_be_the_only_one_possible(tmp_path: Path) -> None:
    """21 of 441 spots are every 21st or every 22nd; 14 of 300 beside them are every 22nd."""
    metadata, groups = fitted(22, spots=441)
    said: list[str] = []
    assert write_calibration(tmp_path, metadata, Settings(), Measured(), said.append) is None
    assert "does not say of which spots" in said[0] and "fit it again" in said[0]
    for record in metadata["out_of_fold"]:
        record["step"] = 22
    for one, other in zip(stored_groups(metadata)[0], groups, strict=True):
        np.testing.assert_allclose(one.embedding, other.embedding[::22], rtol=1e-6)
    for record in metadata["out_of_fold"]:
        record["step"] = 20
    assert stored_groups(metadata)[0] == []
    last = metadata["out_of_fold"][2]
    for name in ("prediction", "truth"):
        last[name] = last[name][:14]
    metadata["fit"]["block_sizes"][2] = 300
    metadata["gallery"] = metadata["gallery"][: 2 * 441 + 300]
    for record in metadata["out_of_fold"]:
        del record["step"]
    stored, _ = stored_groups(metadata)
    np.testing.assert_allclose(stored[2].embedding, groups[2].embedding[:300:22], rtol=1e-6)


def test_a_gallery_of_some_spots_is_matched_by_their_place() -> None:
    metadata, groups = fitted(3, spots=2000)
    kept = np.unique(np.linspace(0, 5999, 4096).round().astype(int))
    metadata["gallery"] = metadata["gallery"][kept]
    stored, _ = stored_groups(metadata)
    rows = [np.intersect1d(np.arange(0, 2000, 3), kept - start) for start in (0, 2000, 4000)]
    for one, other, of in zip(stored, groups, rows, strict=True):
        assert len(of) > 300
        np.testing.assert_allclose(one.embedding, other.embedding[of], rtol=1e-6)


def test_patients_and_parts_of_a_section_are_told_apart() -> None:
    metadata, _ = fitted()
    for record in metadata["out_of_fold"][1:]:
        record["fold"] = "P"
    groups, kind = stored_groups(metadata)
    assert kind == "group of sections" and [group.sections for group in groups] == [1, 2]
    for record in metadata["out_of_fold"]:
        record["section"] = "only"
    assert stored_groups(metadata)[1] == "part of one section"


def test_what_brings_no_held_out_predictions_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    assert write_calibration(tmp_path, {}, Settings(), Measured(), said.append) is None
    metadata, _ = fitted()
    del metadata["gallery"]
    assert write_calibration(tmp_path, metadata, Settings(), Measured(), said.append) is None
    assert len(said) == 2 and all("not calibrated" in text for text in said)
    assert not list(tmp_path.iterdir())


def test_a_fitted_heads_calibration_is_that_of_its_predictions(tmp_path: Path) -> None:
    metadata, groups = fitted()
    record = write_calibration(tmp_path, metadata, Settings(), Measured(), lambda text: None)
    assert record == {"left_out": "section", "groups": 3, "sections": 3, "spots": 180}
    written = read_calibration(tmp_path / CALIBRATION, genes=30, dim=8)
    expected = calibrate(groups)
    for name in SHAPES:
        np.testing.assert_allclose(getattr(written, name), getattr(expected, name), rtol=0.1, atol=0.1)


def test_sections_are_left_out_of_the_bank_one_by_one(small: Small, tmp_path: Path) -> None:
    said: list[str] = []
    change = {"tile": {"size_px": TILE_PX}, "retrieval": {"k": 10}}
    bundle = export_bundle(
        small.ckpt, tmp_path / "bundle", references=[small.folder], overrides=change, parity_tiles=8,
        say=said.append,
    )  # fmt: skip
    assert any("calibrating by 3 groups" in text for text in said)
    calibration = open_bundle(bundle.path).calibration
    assert calibration is not None and calibration.kind == f"section, {OF_BANK}" and calibration.optimistic
    assert calibration.group == ("A1", "A2", "B1") and calibration.stain.shape == (3, 11)
    spots = read_spots(small.folder / "spots" / "A2_selection.tsv")
    with open_slide(small.folder / "images" / "A2.png") as slide:
        corners = np.floor(spots.xy_px).astype(int) - TILE_PX // 2
        tiles = np.stack([slide.read(x, y, TILE_PX, TILE_PX) for x, y in corners.tolist()])
    bank, others = bundle.bank, bundle.bank.section != "A2"
    rest = Bank(
        bank.embedding[others], bank.expression[others], bank.genes, bank.spot[others], bank.section[others]
    )
    embedding = open_session(bundle.encoder_path, "cpu").encode(tiles)
    predicted = Retriever(rest, bundle.retrieval, "reference").aggregate(embedding).expression
    of_spot = {name: i for i, name in enumerate(bank.spot[~others])}
    rows = [of_spot[name] for name in spots.id]
    truth = bank.expression[~others][rows]
    for gene in range(12):
        expected = np.corrcoef(predicted[:, gene], truth[:, gene])[0, 1]
        assert calibration.r[1, gene] == pytest.approx(expected, abs=1e-3)
    out = tmp_path / "map.h5ad"
    words = [small.slide, "--spots", small.spots, "--bundle", bundle.path, "--out", out, "--no-html"]
    done = CliRunner().invoke(infer, [*map(str, words), "--json", str(tmp_path / "run.json")])
    assert done.exit_code == 0, done.output
    verdict = json.loads((tmp_path / "run.json").read_text())["verdict"]
    assert "3 sections" in verdict and "the network may have been trained on them" in verdict


def test_a_fit_is_calibrated_by_sections_only_without_predictions_of_its_own(
    small: Small, tmp_path: Path
) -> None:
    """A pipeline of scikit-learn brings none, and its checkpoint an empty list."""
    ckpt = fitted_checkpoint(tmp_path / "model.pt", retrieval=False, sections=())
    content = torch.load(ckpt, weights_only=True)

    def export(out_of_fold: list[Any], **options: Any) -> Bundle:
        torch.save({**content, "out_of_fold": out_of_fold}, ckpt)
        words: dict[str, Any] = {"parity_tiles": 4, "groups": "patient", "overwrite": True, **options}
        return export_bundle(ckpt, tmp_path / "bundle", **words)

    bundle = export([], references=[small.folder])
    calibration = bundle.calibration
    assert calibration is not None and calibration.group == ("A", "B")
    with pytest.raises(CheckpointError, match=r"model\.pt carries predictions.*leave --groups out"):
        export([{"section": "A1"}])


def test_a_bundle_need_not_be_calibrated(small: Small, tmp_path: Path) -> None:
    change = {"tile": {"size_px": TILE_PX}, "retrieval": {"k": 10}}
    bundle = export_bundle(
        small.ckpt, tmp_path / "bundle", references=[small.folder], overrides=change, parity_tiles=8,
        calibrated=False,
    )  # fmt: skip
    assert bundle.manifest.calibration is None and not (bundle.path / CALIBRATION).exists()


def test_a_slide_system_is_calibrated_by_sections_with_slides(small: Small, tmp_path: Path) -> None:
    """Its r is that of the maps which the bundle itself makes."""
    torch.save(small_network("histogene").state_dict(), tmp_path / "model.pt")
    said: list[str] = []
    change = {"tile": {"size_px": SYSTEM_CASES["histogene"][1]}, "heads": 4}
    bundle = export_bundle(
        tmp_path / "model.pt", tmp_path / "bundle", references=[small.folder], overrides=change,
        parity_tiles=4, say=said.append, groups="patient",
    )  # fmt: skip
    assert any("calibrating by 2 groups" in text for text in said)
    assert any("--unseen" in text for text in said)
    calibration = open_bundle(bundle.path).calibration
    assert calibration is not None and calibration.kind == OF_NETWORK and calibration.optimistic
    assert calibration.group == ("A", "B") and calibration.sections == 3
    words = [small.slide, "--spots", small.spots, "--bundle", bundle.path, "--out", tmp_path / "map.h5ad"]
    done = CliRunner().invoke(infer, [*map(str, words), "--no-html", "--no-picture", "--precision", "fp32"])
    assert done.exit_code == 0, done.output
    result = anndata.read_h5ad(tmp_path / "map.h5ad")
    section = read_section(find_sections(small.folder)["B1"])
    rows = {name: i for i, name in enumerate(section.spot)}
    units = bundle.manifest.normalization.expression
    counts = section.counts.toarray()
    truth = normalize(units, counts, SectionTotals.of(section, counts))
    truth = truth[[rows[name] for name in result.obs_names]]
    for gene in range(12):
        expected = np.corrcoef(result.X[:, gene], truth[:, gene])[0, 1]
        assert calibration.r[1, gene] == pytest.approx(expected, abs=1e-3)
    assert result.obs["distance_percentile"].min() >= 0 and "low_r" in result.var
    assert result.uns["mclst"]["trust"]["optimistic"]


def test_a_network_without_embedding_is_placed_by_what_it_predicts(small: Small, small_bundle: Path) -> None:
    """With sections that it is known not to have seen; one whose slide is missing is left out, and said."""
    images, sections = [], []
    for name, source in find_sections(small.folder).items():
        section = read_section(source)
        assert isinstance(section.image, Path) and section.xy_px is not None
        image = section.image if name != "A2" else section.image.with_name("none.png")
        images.append(SectionImage(name, image, section.xy_px, 0, section.spot))
        counts = np.random.default_rng(0).poisson(3.0, (len(section), 16)).astype(np.float32)
        sections.append(ReferenceSection(name, section.spot, counts, None, section.xy_px))
    said: list[str] = []
    tile = Tile(size_px=TILE_PX)
    measured = Measured(sections, images, unseen=True)
    groups, stain = network_groups(small_bundle, Settings(tile=tile), None, measured, said.append)
    assert [group.group for group in groups] == ["A1", "B1"] and len(stain) == 2
    assert len(said) == 1 and "section A2 is not used" in said[0]
    np.testing.assert_array_equal(groups[0].prediction, groups[0].embedding)
    assert groups[0].truth.shape == groups[0].prediction.shape == (24, 16)
    assert measured.unit == "section" and Measured(by_patient=True).group_of("C4") == "C"
