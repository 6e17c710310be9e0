"""A bank weighed by similarity: settings that fit none are refused, and sections are left out of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from refusals import assert_refused
from small_model import TILE_PX, Small

from mclst.export.cli import main as export
from mclst.export.held_out import Measured, bank_groups
from mclst.export.inputs.references import SectionImage
from mclst.export.parity.compare import compare
from mclst.kernels.definition import reference
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.bundle.bank import bank_bytes, read_bank
from mclst.runtime.bundle.bundle import BANK
from mclst.runtime.bundle.manifest import Retrieval, Settings, Tile
from mclst.runtime.errors import ParityError
from mclst.sections.formats.reference import find_sections, read_section

BY_SIMILARITY: dict[str, Any] = {
    "rank": "cosine",
    "distance": "cosine",
    "weighting": "similarity",
    "temperature": 1.0,
}


@pytest.mark.parametrize(
    ("words", "reasons"),
    [
        (("--distance", "cosine", "--k", "24"), ("over all 72 spots", "give --k 72")),
        (("--k", "72"), ("of cosines, not of 'l1'", "give distance 'cosine'")),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    small: Small, tmp_path: Path, words: tuple[str, ...], reasons: tuple[str, ...]
) -> None:
    out = tmp_path / "bundle"
    base: tuple[Any, ...] = (
        "--ckpt",
        small.ckpt,
        "--reference",
        small.folder,
        "--weighting",
        "similarity",
        "--out",
        out,
        "-q",
    )
    assert_refused(CliRunner().invoke(export, [str(word) for word in (*base, *words)]), 4, reasons)
    assert not out.exists()


def test_tiles_unlike_the_bank_are_refused(small_bundle: Path) -> None:
    bank = read_bank(small_bundle / BANK)
    away = -bank.embedding.sum(axis=0, keepdims=True)
    with pytest.raises(ParityError, match=r"cosines of tile 1 to the bank add up to -.* another --weighting"):
        compare(away, away, bank, Retrieval(k=len(bank), **BY_SIMILARITY))


def test_a_section_is_predicted_from_all_spots_of_the_others(
    small: Small, small_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_bundle, folder := tmp_path / "bundle")
    bank = read_bank(folder / BANK)
    images = []
    for name in ("A1", "A2"):
        section = read_section(find_sections(small.folder)[name])
        assert isinstance(section.image, Path) and section.xy_px is not None
        first = int(np.flatnonzero(bank.section == name)[0])
        images.append(SectionImage(name, section.image, section.xy_px, first, section.spot))
    settings = Settings(tile=Tile(size_px=TILE_PX), retrieval=Retrieval(k=len(bank), **BY_SIMILARITY))
    said: list[str] = []
    # The embeddings of the tiles do not depend on the bank; those of the bank are then put around them.
    plain = settings.model_copy(
        update={
            "retrieval": Retrieval(
                k=3, rank="cosine", distance="cosine", weighting="uniform", temperature=1.0
            )
        }
    )
    tiles = [group.embedding for group in bank_groups(folder, plain, Measured(images=images), said.append)[0]]
    toward = np.concatenate(tiles).mean(axis=0)
    near = replace(bank, embedding=(bank.embedding + 50 * toward).astype(np.float32))
    (folder / BANK).write_bytes(bank_bytes(near))
    groups, _ = bank_groups(folder, settings, Measured(images=images), said.append)
    assert [group.group for group in groups] == ["A1", "A2"] and not said
    for group in groups:
        rest = near.section != group.group
        spec = RetrievalSpec(k=int(rest.sum()), **BY_SIMILARITY)
        expected = reference.aggregate(
            group.embedding.astype(np.float32), near.embedding[rest], near.expression[rest], spec
        )
        np.testing.assert_allclose(group.prediction, expected.expression, rtol=0, atol=1e-5)
    # Around the tiles' opposite no spot has a weight.
    (folder / BANK).write_bytes(bank_bytes(replace(near, embedding=-near.embedding)))
    assert bank_groups(folder, settings, Measured(images=images), said.append)[0] == []
    assert len(said) == 2 and all("is not left out: the cosines" in text for text in said)
