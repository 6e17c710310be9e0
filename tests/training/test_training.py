"""Contrastive training: losses against float64 numpy, the training loop, checkpoints."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.special import logsumexp
from training_runs import GENES, PLAIN, TINY, synthetic_section

from mclst.demo.tissue import write_section
from mclst.export.inputs.bank import encode_bank
from mclst.export.inputs.checkpoint import open_checkpoint
from mclst.export.inputs.references import stored_sections
from mclst.export.onnx.graph import preprocess
from mclst.runtime.bundle.manifest import Preprocessing, Settings, Tile
from mclst.runtime.errors import InputError, OutputError, ReferenceDataError
from mclst.sections.formats.reference import find_sections, read_section
from mclst.sections.normalize import NORMALIZATIONS, SectionTotals
from mclst.sections.tables.synonyms import synonyms_of
from mclst.training.checkpoint import checkpoint_content, write_checkpoint
from mclst.training.contrastive import (
    TrainedModel,
    TrainingStep,
    batches,
    learning_rate,
    progress_fraction,
    train,
)
from mclst.training.data import (
    TrainingSection,
    augment,
    encoder_input,
    make_pairs,
    read_training_section,
)
from mclst.training.losses import contrastive_loss
from mclst.training.settings import Augmentation
from mclst.training.sources import read_genes


@pytest.fixture(scope="module")
def sections() -> list[TrainingSection]:
    return [synthetic_section("A", 9, 1), synthetic_section("B", 7, 2)]


@pytest.fixture(scope="module")
def trained(sections: list[TrainingSection]) -> TrainedModel:
    return train(sections, TINY)


def loss_by_hand(spots: NDArray[Any], tiles: NDArray[Any], temperature: float, image_weight: float) -> float:
    """CLIP's loss, written out in float64."""
    logits = spots.astype(np.float64) @ tiles.astype(np.float64).T / temperature
    by_spot = (logsumexp(logits, axis=1) - np.diag(logits)).mean()
    by_tile = (logsumexp(logits, axis=0) - np.diag(logits)).mean()
    return float(image_weight * by_tile + (1 - image_weight) * by_spot)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 12),
    dim=st.integers(1, 9),
    temperature=st.floats(0.05, 50),
    image_weight=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_loss_is_the_definition(n: int, dim: int, temperature: float, image_weight: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spots, tiles = rng.normal(0, 3, (2, n, dim)).astype(np.float32)
    result = contrastive_loss(
        torch.from_numpy(spots),
        torch.from_numpy(tiles),
        temperature=temperature,
        image_weight=image_weight,
    )
    expected = loss_by_hand(spots, tiles, temperature, image_weight)
    assert float(result) == pytest.approx(expected, rel=2e-5, abs=2e-5 * max(1, 30 / temperature))


def test_loss_weighs_both_directions_without_normalization() -> None:
    spots = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    tiles = torch.tensor([[1.0, 2.0], [0.5, 1.0]])
    by_spot = contrastive_loss(spots, tiles, temperature=1.0, image_weight=0.0)
    by_tile = contrastive_loss(spots, tiles, temperature=1.0, image_weight=1.0)
    assert abs(float(by_spot - by_tile)) > 0.1
    assert abs(float(contrastive_loss(2 * spots, tiles, temperature=1.0, image_weight=0.0) - by_spot)) > 0.1


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_two_steps_reduce_the_loss(sections: list[TrainingSection], optimizer: Any) -> None:
    losses: list[float] = []
    config = dataclasses.replace(TINY, optimizer=optimizer)
    train(sections, config, lambda step: losses.append(step.loss))  # one batch holds everything
    assert len(losses) == 3
    assert losses[0] > losses[1] > losses[2]


def test_same_seed_same_weights(sections: list[TrainingSection], trained: TrainedModel) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = train(sections, TINY)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers moved"
    assert again.losses == trained.losses
    for (name, a), b in zip(
        trained.network.state_dict().items(), again.network.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    other = train(sections, dataclasses.replace(TINY, seed=1))
    assert not torch.equal(
        other.network.get_parameter("x_embed.weight"), trained.network.get_parameter("x_embed.weight")
    )


def test_seconds_end_the_run(sections: list[TrainingSection]) -> None:
    steps: list[TrainingStep] = []
    trained = train(sections, dataclasses.replace(TINY, epochs=None, seconds=0.3, batch_size=8), steps.append)
    assert trained.seconds >= 0.3
    assert trained.steps == len(steps)
    assert all(step.seconds < 0.3 for step in steps[:-1])


def test_a_nan_loss_is_refused(sections: list[TrainingSection]) -> None:
    with pytest.raises(InputError, match="learning rate"):
        train(sections, dataclasses.replace(TINY, learning_rate=1e30))


def test_schedule() -> None:
    config = dataclasses.replace(TINY, epochs=4, seconds=10.0, schedule="cosine")
    assert progress_fraction(config, steps=6, steps_per_epoch=3, elapsed=1.0) == pytest.approx(0.5)
    assert progress_fraction(config, steps=6, steps_per_epoch=3, elapsed=8.0) == pytest.approx(0.8)
    assert [learning_rate(config, done) for done in (0.0, 0.5, 1.0)] == pytest.approx([1e-3, 5e-4, 0.0])
    assert learning_rate(TINY, 0.9) == TINY.learning_rate


@given(count=st.integers(1, 400), size=st.integers(2, 130))
def test_batches_cover_all_pairs_evenly(count: int, size: int) -> None:
    result = list(batches(count, size))
    lengths = {len(batch) for batch in result}
    assert sorted(torch.cat(result).tolist()) == list(range(count))
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": None},
        {"epochs": 0},
        {"seconds": 0.0},
        {"batch_size": 1},
        {"temperature": 0.0},
        {"image_weight": 1.5},
        {"optimizer": "sgd"},
        {"schedule": "step"},
        {"position_std": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give|choose|needs"):
        dataclasses.replace(TINY, **change)


def test_pairs_are_in_section_order(sections: list[TrainingSection]) -> None:
    pairs = make_pairs(sections, TINY.settings)
    rows = torch.tensor([15, 0, 8, 9])
    all_tiles = np.concatenate([section.tiles for section in sections])
    np.testing.assert_array_equal(pairs.tiles_of(rows).numpy(), all_tiles[rows.numpy()])
    share = sections[1].counts.astype(np.float64)
    expected = np.log10(1e4 * share / share.sum(axis=1, keepdims=True) + 1)
    np.testing.assert_allclose(pairs.expression[9:].numpy(), expected, rtol=1e-6)
    np.testing.assert_array_equal(pairs.position[9:].numpy(), sections[1].array_xy)


def test_mismatched_sections_are_refused(sections: list[TrainingSection]) -> None:
    a, b = sections
    other_genes = dataclasses.replace(b, genes=GENES[::-1])
    negative = dataclasses.replace(b, array_xy=b.array_xy - 1)
    lacking = dataclasses.replace(b, counts=b.counts[1:])
    with pytest.raises(ValueError, match="different genes"):
        make_pairs([a, other_genes], TINY.settings)
    with pytest.raises(ReferenceDataError, match=r"section B.*below 0"):
        make_pairs([a, negative], TINY.settings)
    with pytest.raises(ValueError, match="section B has 7 spots"):
        make_pairs([a, lacking], TINY.settings)
    with pytest.raises(ValueError, match="32 px"):
        make_pairs([a, b], Settings(tile=Tile(size_px=32)))
    with pytest.raises(ReferenceDataError, match="fewer than two"):
        make_pairs([], TINY.settings)


def test_disabled_augmentation_changes_nothing() -> None:
    tiles = torch.from_numpy(synthetic_section("A", 8, 3).tiles)
    upright = tiles.permute(0, 3, 1, 2)
    assert torch.equal(augment(tiles, PLAIN), upright)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flipped = augment(tiles, dataclasses.replace(PLAIN, horizontal_flip=True))
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, upright, strict=True)]
    saved = [torch.equal(a, b) for a, b in zip(flipped, upright, strict=True)]
    assert all(m or k for m, k in zip(mirrored, saved, strict=True))
    assert any(mirrored)
    assert any(saved)


def test_each_tile_is_augmented_independently() -> None:
    same = torch.from_numpy(np.repeat(synthetic_section("A", 1, 3).tiles + np.uint8(90), 8, axis=0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        jittered = augment(same, Augmentation(horizontal_flip=False, rotation_deg=0)).float()
        turned = augment(same, dataclasses.replace(PLAIN, rotation_deg=180))
    means = jittered.mean(dim=(1, 2, 3))
    assert len(set(means.tolist())) == 8
    assert float(means.min()) / float(same.float().mean()) > 0.4
    assert float(means.max()) / float(same.float().mean()) < 1.6
    corners = (turned[:, :, 0, 0] == 0).all(dim=1)
    assert corners.any(), "corners that a rotation brings into view are black"
    assert bool((turned[:, :, 8, 8] > 0).all())


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("pixel_range", ["0-1", "0-255"])
def test_training_preprocesses_like_the_bundle(channels: Any, pixel_range: Any) -> None:
    preprocessing = Preprocessing(
        channels=channels, pixel_range=pixel_range, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
    )
    tiles = synthetic_section("A", 4, 3).tiles
    result = encoder_input(torch.from_numpy(tiles).permute(0, 3, 1, 2), preprocessing)
    torch.testing.assert_close(result, preprocess(tiles, preprocessing))


def test_checkpoint_loads_with_weights_only(trained: TrainedModel, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model.pt", trained)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]
    content = torch.load(path, weights_only=True)
    assert content["format"] == "mclst-checkpoint/1"
    assert content["genes"] == list(GENES)
    for name, tensor in trained.network.state_dict().items():
        assert torch.equal(content["model"][name], tensor), name
    assert Settings.model_validate_json(json.dumps(content["config"])) == TINY.settings
    assert content["training"]["steps"] == 3
    assert content["tiles"].dtype == torch.uint8
    for section, saved in zip(trained.sections, content["sections"], strict=True):
        assert saved["name"] == section.name
        assert saved["spot"] == list(section.spot)
        np.testing.assert_array_equal(saved["counts"].numpy(), section.counts)
        np.testing.assert_array_equal(saved["array_xy"].numpy(), section.array_xy)


def test_export_uses_the_bank_of_the_checkpoint(trained: TrainedModel, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model.pt", trained))
    carried, genes = stored_sections(checkpoint)
    settings_ = TINY.settings
    bank = encode_bank(checkpoint, carried, genes.names, settings_)
    pairs = make_pairs(trained.sections, settings_)
    with torch.inference_mode():
        expected = trained.network.encode_spots(pairs.expression, pairs.position).numpy()
    np.testing.assert_allclose(bank.embedding, expected, atol=1e-5)  # 16 spots: one sentence of 32
    counts = np.concatenate([NORMALIZATIONS["gene-wise"](s.counts) for s in trained.sections])
    np.testing.assert_array_equal(bank.expression, counts)
    assert list(bank.section) == ["A"] * 9 + ["B"] * 7


def test_a_checkpoint_stores_how_many_genes_were_measured(trained: TrainedModel, tmp_path: Path) -> None:
    """An earlier checkpoint does not, so it has no log-share of its totals."""
    total = [section.counts.sum(1, dtype=np.float64) + 3 for section in trained.sections]
    for measured in (40, None):
        sections = tuple(
            dataclasses.replace(s, totals=SectionTotals.of_counts(s.counts, of, measured))
            for s, of in zip(trained.sections, total, strict=True)
        )
        path = write_checkpoint(tmp_path / "model.pt", dataclasses.replace(trained, sections=sections))
        carried, _ = stored_sections(open_checkpoint(path))
        if measured is None:
            with pytest.raises(ReferenceDataError, match=r"section A .* how many genes were measured"):
                carried[0].normalized("log-share")
            continue
        expected = np.log((1 + sections[0].counts) / (40 + total[0][:, None]))
        np.testing.assert_allclose(carried[0].normalized("log-share"), expected, atol=1e-6)
        np.testing.assert_array_equal(sections[0].normalized("log-share"), carried[0].normalized("log-share"))


@pytest.mark.parametrize("unit", ["gene-wise", "median-log1p"])
def test_a_checkpoint_stores_the_sums_over_spots_without_a_tile(
    trained: TrainedModel, tmp_path: Path, unit: str
) -> None:
    whole = trained.sections[0]
    kept = np.arange(len(whole.spot)) % 4 != 1
    short = dataclasses.replace(
        whole,
        spot=tuple(np.array(whole.spot)[kept]),
        tiles=whole.tiles[kept],
        counts=whole.counts[kept],
        array_xy=whole.array_xy[kept],
        totals=SectionTotals.of_counts(whole.counts, whole.counts.sum(1), len(whole.genes)).take(kept),
    )
    expected = NORMALIZATIONS[unit](whole.counts)[kept]
    assert np.abs(NORMALIZATIONS[unit](short.counts) - expected).max() > 0.01
    np.testing.assert_array_equal(short.normalized(unit), expected)
    of = dataclasses.replace(trained, sections=(short, *trained.sections[1:]))
    carried, _ = stored_sections(open_checkpoint(write_checkpoint(tmp_path / "model.pt", of)))
    np.testing.assert_array_equal(carried[0].normalized(unit), expected)


def test_checkpoint_is_written_atomically(
    trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"what stood there")

    def fail(content: object, file: IO[bytes]) -> None:
        """As torch.save on a full disk: the error of its archive's end hides that of the write."""
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OutputError, match=r"model\.pt cannot be written \(No space left on device\)"):
        write_checkpoint(path, trained)
    assert path.read_bytes() == b"what stood there"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]


def test_the_same_checkpoint_has_the_same_bytes(trained: TrainedModel, tmp_path: Path) -> None:
    """Neither the file's name nor the hidden one that it is written under is in it."""
    paths = [tmp_path / "model.pt", tmp_path / "épreuve" / "another.checkpoint"]
    paths[1].parent.mkdir()
    first, second = (write_checkpoint(path, trained).read_bytes() for path in paths)
    assert first == second
    assert torch.load(paths[1], weights_only=True)["genes"] == list(GENES)


def test_checkpoint_contains_parity_tiles(trained: TrainedModel) -> None:
    tiles = checkpoint_content(trained)["tiles"]
    all_tiles = np.concatenate([section.tiles for section in trained.sections])
    np.testing.assert_array_equal(tiles.numpy(), all_tiles)  # 16 spots, fewer than the 64 that would be drawn


def test_a_symbol_of_two_genes_is_no_default_gene(tmp_path: Path) -> None:
    """As in Space Ranger's references; the Ensembl id of one still leads to it."""
    write_section(tmp_path, "S1", 3, size_px=400, pitch_um=25)
    section = read_section(find_sections(tmp_path)["S1"])
    names = section.genes.copy()
    names[1] = names[4]
    ids = [f"ENSG{number:011d}" for number in range(len(names))]
    section = dataclasses.replace(section, genes=names, synonyms=synonyms_of(names.tolist(), [ids]))
    said: list[str] = []
    genes = read_genes([], None, section, said.append)
    assert genes == np.delete(names, [1, 4]).tolist()
    assert len(said) == 1 and f"section S1 has more than once are left out: {names[4]};" in said[0]
    kept = read_training_section(section, genes, Tile(size_px=16))
    np.testing.assert_array_equal(kept.counts, np.delete(section.counts.toarray(), [1, 4], axis=1))
    (tmp_path / "genes.txt").write_text(f"{ids[4]}\n{names[0]}\n")
    genes = read_genes([tmp_path], None, section, said.append)
    kept = read_training_section(section, genes, Tile(size_px=16))
    np.testing.assert_array_equal(kept.counts, section.counts.toarray()[:, [4, 0]])
    with pytest.raises(ReferenceDataError, match=r"every gene of section S1 .* more than once"):
        read_genes([], None, dataclasses.replace(section, genes=np.array(["A"] * len(names))), said.append)


def test_a_measured_section_becomes_pairs(tmp_path: Path) -> None:
    written = write_section(tmp_path, "S1", 3, size_px=400, pitch_um=25)
    section = read_section(find_sections(tmp_path)["S1"])
    result = read_training_section(section, written.genes[:5], Tile(size_px=16))
    assert result.spot == written.spot
    assert result.skipped == ()
    picture = tifffile.imread(written.image, key=0)
    for (x, y), tile in zip(np.floor(written.xy_px).astype(int), result.tiles, strict=True):
        np.testing.assert_array_equal(tile, picture[y - 8 : y + 8, x - 8 : x + 8])
    np.testing.assert_array_equal(result.counts, section.counts[:, :5].toarray())

    assert section.xy_px is not None
    xy_px = section.xy_px.copy()
    xy_px[2] = np.nan
    short = read_training_section(
        dataclasses.replace(section, xy_px=xy_px), written.genes[:5], Tile(size_px=16)
    )
    assert short.skipped == ((written.spot[2], "has no pixel coordinates"),)
    assert short.spot == written.spot[:2] + written.spot[3:]
    np.testing.assert_array_equal(short.tiles[2], result.tiles[3])


def test_a_section_without_an_image_cannot_be_trained_on(tmp_path: Path) -> None:
    write_section(tmp_path, "S1", 3, size_px=400, pitch_um=25)
    section = read_section(find_sections(tmp_path)["S1"])
    with pytest.raises(ReferenceDataError, match=r"section S1 .* has no image"):
        read_training_section(dataclasses.replace(section, image=None), ["TUMOR1"], Tile(size_px=16))


def test_an_image_of_one_color_is_refused(tmp_path: Path) -> None:
    write_section(tmp_path, "S1", 3, size_px=400, pitch_um=25)
    section = read_section(find_sections(tmp_path)["S1"])
    assert isinstance(section.image, Path)
    Image.new("RGB", (400, 400), (250, 240, 245)).save(section.image)
    with pytest.raises(ReferenceDataError, match=r"has one color under all its \d+ spots; give its slide"):
        read_training_section(section, ["TUMOR1"], Tile(size_px=16))
