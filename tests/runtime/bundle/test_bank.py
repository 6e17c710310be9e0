"""The bank: sentences, positions and normalizations against the published procedure, and its file."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_model import GENES, POSITIONS, tiny_network

from mclst.export.inputs.bank import ReferenceSection, encode_bank, positions, sentences
from mclst.export.inputs.checkpoint import Checkpoint, open_checkpoint
from mclst.runtime.bundle.bank import Bank, bank_bytes, read_bank
from mclst.runtime.bundle.manifest import Context, Settings
from mclst.runtime.errors import BundleError, ReferenceDataError
from mclst.sections.normalize import gene_wise, spot_wise


def context(spots: int, scope: str = "file", kind: str = "array") -> Context:
    return Context.model_validate({"spots": spots, "sentences": scope, "positions": kind})


@given(st.lists(st.integers(1, 70), min_size=1, max_size=6), st.integers(1, 40))
def test_sentences_cover_every_spot_once_in_order(lengths: list[int], spots: int) -> None:
    for scope in ("file", "section"):
        slices = sentences(lengths, context(spots, scope))
        rows = [row for part in slices for row in range(part.start, part.stop)]
        assert rows == list(range(sum(lengths)))
        assert all(1 <= part.stop - part.start <= spots for part in slices)
    borders = np.cumsum(lengths)
    within = sentences(lengths, context(spots, "section"))
    assert all(not np.any((borders > part.start) & (borders < part.stop)) for part in within)
    across = sentences(lengths, context(spots))
    assert all(part.stop - part.start == spots for part in across[:-1])


def synthetic_section(name: str, spots: int, seed: int) -> ReferenceSection:
    rng = np.random.default_rng(seed)
    return ReferenceSection(
        name,
        np.array([f"{name}-{i}" for i in range(spots)]),
        rng.poisson(4, (spots, GENES)).astype(np.float32),
        rng.integers(0, POSITIONS, (spots, 2)),
        rng.uniform(0, POSITIONS, (spots, 2)),
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("ckpt") / "model.pt"
    torch.save(tiny_network().state_dict(), path)
    return open_checkpoint(path)


def coordinates(section: ReferenceSection, kind: str) -> np.ndarray:
    assert section.array_xy is not None and section.xy_px is not None
    return section.array_xy if kind == "array" else section.xy_px[:, ::-1].astype(int)


@pytest.mark.parametrize(("scope", "kind"), [("file", "array"), ("section", "array"), ("file", "pixel")])
def test_bank_equals_the_published_procedure(checkpoint: Checkpoint, scope: str, kind: str) -> None:
    sections = [synthetic_section("A", 11, 1), synthetic_section("B", 6, 2)]
    settings = Settings(context=context(4, scope, kind))
    genes = np.array([f"G{i}" for i in range(GENES)])
    bank = encode_bank(checkpoint, sections, genes, settings)
    network = tiny_network()
    inputs = torch.from_numpy(np.concatenate([spot_wise(s.counts) for s in sections]))
    rows = np.concatenate([coordinates(s, kind) for s in sections])
    cuts = [0, 4, 8, 12, 16, 17] if scope == "file" else [0, 4, 8, 11, 15, 17]
    with torch.no_grad():
        expected = torch.cat(
            [
                network.encode_spots(inputs[a:b], torch.from_numpy(rows[a:b]))
                for a, b in itertools.pairwise(cuts)
            ]
        )
    assert np.abs(bank.embedding - expected.numpy()).max() < 1e-5
    assert np.array_equal(bank.expression, np.concatenate([gene_wise(s.counts) for s in sections]))
    assert list(bank.section) == ["A"] * 11 + ["B"] * 6
    assert list(bank.spot[:2]) == ["A-0", "A-1"]


def test_positions_beyond_the_tables_are_named() -> None:
    section = synthetic_section("A", 5, 1)
    assert section.array_xy is not None
    section.array_xy[3] = (7, 25)
    with pytest.raises(ReferenceDataError, match=r"A-3 of section A is at array position \(7, 25\)"):
        positions(section, "array", POSITIONS)
    with pytest.raises(ReferenceDataError, match="no pixel coordinates"):
        positions(
            ReferenceSection("A", section.spot, section.counts, section.array_xy, None), "pixel", POSITIONS
        )


def small_bank() -> Bank:
    rng = np.random.default_rng(0)
    return Bank(
        rng.normal(size=(5, 3)).astype(np.float32),
        rng.random((5, 2)).astype(np.float32),
        np.array(["ERBB2", "GNAS"]),
        np.array(["1x2", "3x4", "5x6", "7x8", "µ"]),
        np.array(["A", "A", "B", "B", "B"]),
    )


def test_bank_file_reads_back(tmp_path: Path) -> None:
    bank = small_bank()
    (tmp_path / "bank.h5").write_bytes(bank_bytes(bank))
    read_back = read_bank(tmp_path / "bank.h5")
    for name in ("embedding", "expression", "genes", "spot", "section"):
        assert np.array_equal(getattr(read_back, name), getattr(bank, name))
    with h5py.File(tmp_path / "bank.h5") as file:
        assert set(file) == {"embedding", "expression", "genes", "spot", "section"}


def spoil(change: str, folder: Path) -> bytes:
    """A bank file that is wrong in one way."""
    buffer = io.BytesIO(bank_bytes(small_bank()))
    with h5py.File(buffer, "r+") as file:
        name = "embedding"
        if change == "missing":
            del file["genes"]
        elif change == "nan":
            file[name][2, 1] = np.nan
        elif change == "short":
            del file["spot"]
            file["spot"] = ["a"]
        elif change == "twice":
            del file["genes"]
            file["genes"] = ["A", "A"]
        else:
            del file[name]
        if change == "double":
            file[name] = np.zeros((5, 3))
        elif change == "external link":
            (folder / "other.h5").write_bytes(bank_bytes(small_bank()))
            file[name] = h5py.ExternalLink(str(folder / "other.h5"), f"/{name}")
        elif change == "external storage":
            (folder / "secret").write_bytes(bytes(60))
            file.create_dataset(name, (5, 3), "f4", external=[(str(folder / "secret"), 0, 60)])
        elif change == "bomb":
            file.create_dataset(name, (1 << 40, 3), "f4", chunks=(1024, 3), compression="gzip")
        elif change == "vast":
            file.create_dataset(name, (1 << 40, 3), "f4")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        "missing",
        "nan",
        "short",
        "twice",
        "double",
        "external link",
        "external storage",
        "bomb",
        "vast",
        "truncated",
        "empty",
    ],
)
def test_a_spoilt_bank_is_refused(tmp_path: Path, change: str) -> None:
    if change in ("truncated", "empty"):
        content = bank_bytes(small_bank())[: 900 if change == "truncated" else 0]
    else:
        content = spoil(change, tmp_path)
    (tmp_path / "bank.h5").write_bytes(content)
    with pytest.raises(BundleError, match=r"bank\.h5"):
        read_bank(tmp_path / "bank.h5")
