"""mclst-train beyond mclSTExp's HER2+ defaults: BLEEP, pixel positions, totals over all genes, flips."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import anndata
import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from small_model import Small
from training_runs import PLAIN, QUICK, config, export_bank, in_float64, run, synthetic_section

from mclst.export.bundling import export_bundle
from mclst.models.bleep import Bleep
from mclst.runtime.bundle.manifest import Context
from mclst.runtime.cli.infer import main as infer
from mclst.runtime.errors import ReferenceDataError
from mclst.runtime.providers.opening import open_session
from mclst.sections.accuracy import score
from mclst.sections.formats.reference import find_sections, read_section
from mclst.training.checkpoint import write_checkpoint
from mclst.training.cli import main
from mclst.training.contrastive import Training, train
from mclst.training.data import augment, encoder_input
from mclst.training.losses import soft_contrastive_loss
from mclst.training.options import build_config, resolve_options
from mclst.training.settings import TrainConfig
from mclst.training.validation import validate

SECTIONS = [synthetic_section("A", 9, 1), synthetic_section("B", 7, 2)]
BLEEP = shlex.split(
    "--system bleep --encoder test_resnet --tile-px 32 --projection-dim 8 --k 10 --batch-size 24 --epochs 1"
)


def with_pixels(pitch_px: float = 30.25) -> list[Any]:
    """The sections with pixel coordinates, some of them fractional."""
    return [
        dataclasses.replace(s, xy_px=s.array_xy[:, ::-1] * pitch_px + np.array([10.75, 3.5]))
        for s in SECTIONS
    ]


def config_from(*words: str) -> TrainConfig:
    return build_config(resolve_options(main.make_context("mclst-train", ["SECTIONS", *words])))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 9), weight=st.floats(0, 1), temperature=st.floats(0.5, 20), seed=st.integers(0, 99))
def test_the_soft_loss_is_its_definition(n: int, weight: float, temperature: float, seed: int) -> None:
    spots, tiles = np.random.default_rng(seed).normal(0, 2, (2, n, 5))
    logits = spots @ tiles.T / temperature
    target = softmax((spots @ spots.T + tiles @ tiles.T) / 2 / temperature, axis=1)
    by_spot = -(target * log_softmax(logits, axis=1)).sum(axis=1).mean()
    by_tile = -(target.T * log_softmax(logits.T, axis=1)).sum(axis=1).mean()
    result = soft_contrastive_loss(
        torch.from_numpy(spots), torch.from_numpy(tiles), temperature=temperature, image_weight=weight
    )
    assert float(result) == pytest.approx(weight * by_tile + (1 - weight) * by_spot, rel=1e-9)


def test_bleeps_defaults_are_the_published_ones() -> None:
    result = config_from("--system", "bleep")
    assert (result.encoder, result.dropout, result.temperature) == ("resnet50", 0.1, 1.0)
    assert (result.optimizer, result.learning_rate, result.weight_decay) == ("adamw", 1e-3, 1e-3)
    assert (result.epochs, result.batch_size, result.projection_dim) == (4, 256, 256)
    retrieval = result.settings.retrieval
    assert (retrieval.k, retrieval.rank, retrieval.weighting) == (50, "cosine", "uniform")
    pixels = result.settings.preprocessing
    assert (pixels.channels, pixels.pixel_range, pixels.mean) == ("bgr", "0-255", (0.0, 0.0, 0.0))
    assert result.augmentation == dataclasses.replace(
        PLAIN, horizontal_flip=True, vertical_flip=True, quarter_turns=True
    )
    assert result.settings.normalization.expression == result.settings.normalization.input == "median-log1p"
    later = config_from("--system", "bleep", "--pixel-range", "0-1", "--mean", "0.4,0.5,0.6", "--k", "7")
    assert later.settings.preprocessing.mean == (0.4, 0.5, 0.6) and later.settings.retrieval.k == 7
    assert later.settings.preprocessing.pixel_range == "0-1"
    assert config_from() == TrainConfig()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("--optimiser", "adamw"), ("--optimizer", "adamw")),
        (("--colour-jitter", "0.1"), ("--color-jitter", "0.1")),
        (("--input-normalisation", "none"), ("--input-normalization", "none")),
        (("--expression-normalisation", "none"), ("--expression-normalization", "none")),
    ],
)
def test_old_option_names_are_accepted(old: tuple[str, str], new: tuple[str, str]) -> None:
    assert config_from(*old) == config_from(*new) != config_from()
    # An explicit option under its old name also overrides the defaults of BLEEP.
    assert config_from("--system", "bleep", *old) == config_from("--system", "bleep", *new)
    shown = CliRunner().invoke(main, ["--help"]).output
    assert new[0] in shown and old[0] not in shown


@pytest.mark.parametrize("option", [("--positions", "learnable"), ("--heads", "4"), ("--context", "8")])
def test_options_of_a_spot_encoder_are_not_bleeps(option: tuple[str, str]) -> None:
    with pytest.raises(click.UsageError, match=f"{option[0]} is of mclSTExp's spot encoder"):
        config_from("--system", "bleep", *option)


def test_bleep_from_sections_to_a_map(small: Small, tmp_path: Path) -> None:
    out, listed = tmp_path / "model.pt", tmp_path / "some.txt"
    listed.write_text("GENE1\nGENE4\nGENE2\n")
    words = ["--published-layout", "--out", out, "--genes", listed, "--validation", "B1"]
    done = run(small.folder, *BLEEP, *words)
    assert done.exit_code == 0, done.output
    state = torch.load(tmp_path / "model.state_dict.pt", weights_only=True)
    published = Bleep("test_resnet", 3, projection_dim=8).eval()
    published.load_state_dict(state)  # strict: the published names and shapes

    bundle = export_bundle(out, tmp_path / "mclst-bundle", parity_tiles=4)
    m = bundle.manifest
    assert (m.system, m.context, m.preprocessing.channels) == ("bleep", None, "bgr")
    counts = [read_section(find_sections(small.folder)[name]).counts.toarray() for name in ("A1", "A2")]
    totals = [c.sum(1, keepdims=True, dtype=np.float64) for c in counts]  # over all twelve genes
    expected = [np.log1p(c / t * np.median(t))[:, [1, 4, 2]] for c, t in zip(counts, totals, strict=True)]
    np.testing.assert_allclose(bundle.bank.expression, np.concatenate(expected), atol=1e-6)
    with torch.inference_mode():
        embedding = published.encode_spots(torch.from_numpy(bundle.bank.expression)).numpy()
    np.testing.assert_allclose(bundle.bank.embedding, embedding, atol=1e-5)

    spots = ["--spots", str(small.spots), "--bundle", str(bundle.path), "--out", str(tmp_path / "B1.h5ad")]
    assert CliRunner().invoke(infer, [str(small.slide), *spots, "--no-picture", "-q"]).exit_code == 0
    assert anndata.read_h5ad(tmp_path / "B1.h5ad").var_names.tolist() == ["GENE1", "GENE4", "GENE2"]


def bundle_score(training: Training, held_out: Any, tmp_path: Path) -> Any:
    from mclst.kernels.retriever import Retriever

    ckpt = write_checkpoint(tmp_path / "model.pt", training.finish())
    bundle = export_bundle(ckpt, tmp_path / "bundle", parity_tiles=4)
    queries = open_session(bundle.encoder_path, "cpu").encode(held_out.tiles)
    result = Retriever(bundle.bank, bundle.retrieval).aggregate(queries).expression
    return score(result, held_out.normalized(bundle.manifest.normalization.expression))


@pytest.mark.parametrize("variant", ["bleep", "pixel"])
def test_validation_is_what_the_bundle_will_score(variant: str, tmp_path: Path) -> None:
    context = Context(spots=5, sentences="file", positions="pixel" if variant == "pixel" else "none")
    base = config()
    of_all = base.settings.retrieval.model_copy(update={"k": 16})  # so that no rounding changes who is near
    changed = dataclasses.replace(
        base,
        settings=base.settings.model_copy(update={"context": context, "retrieval": of_all}),
        system="bleep" if variant == "bleep" else "mclstexp",
        positions="none" if variant == "bleep" else "learnable",
    )
    training = Training(with_pixels(), changed)
    training.run_epoch()
    held_out = synthetic_section("C", 11, 5)
    (result,) = validate(training, [held_out])
    expected = bundle_score(training, held_out, tmp_path)
    assert [result.pcc_acg, result.mse] == pytest.approx([expected.pcc_acg, expected.mse], rel=1e-3)


@pytest.mark.parametrize("positions", ["learnable", "sinusoidal", "naive"])
def test_pixel_positions(tmp_path: Path, positions: Any) -> None:
    base = config(positions=positions)
    context = Context(spots=32, sentences="file", positions="pixel")
    changed = dataclasses.replace(base, settings=base.settings.model_copy(update={"context": context}))
    trained = train(with_pixels(), changed)
    bank = export_bank(trained, tmp_path)
    counts = np.concatenate([s.counts for s in SECTIONS]).astype(np.float64)
    positions = np.concatenate([np.floor(s.xy_px).astype(int)[:, ::-1] for s in with_pixels()])  # row, column
    assert len(trained.network.get_parameter("x_embed.weight")) > positions.max() > 128
    expected = in_float64(
        trained.network, np.log10(1e4 * counts / counts.sum(axis=1, keepdims=True) + 1), positions
    )
    np.testing.assert_allclose(bank.embedding, expected, atol=1e-4)


def test_a_section_without_pixel_coordinates_is_refused() -> None:
    base = config()
    context = Context(spots=32, sentences="file", positions="pixel")
    changed = dataclasses.replace(base, settings=base.settings.model_copy(update={"context": context}))
    with pytest.raises(ReferenceDataError, match="section A has no pixel coordinates for all its spots"):
        Training(SECTIONS, changed)


def test_flips_and_quarter_turns_are_the_eight_symmetries() -> None:
    tile = synthetic_section("A", 1, 3).tiles
    same = torch.from_numpy(np.repeat(tile, 64, axis=0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = augment(
            same, dataclasses.replace(PLAIN, horizontal_flip=True, vertical_flip=True, quarter_turns=True)
        )
        down = augment(same, dataclasses.replace(PLAIN, vertical_flip=True))
    upright = tile[0].transpose(2, 0, 1)
    eight = [np.rot90(t, k, (1, 2)).tobytes() for t in (upright, upright[:, :, ::-1]) for k in range(4)]
    assert {one.tobytes() for one in result.numpy()} == set(eight) and len(set(eight)) == 8
    assert {one.tobytes() for one in down.numpy()} == {upright.tobytes(), upright[:, ::-1].tobytes()}


def test_training_preprocesses_like_the_manifest(small: Small, tmp_path: Path) -> None:
    words = shlex.split("--channels bgr --pixel-range 0-255 --mean 9,8,7 --std 2,3,4 --epochs 1")
    done = run(small.folder, *QUICK, *words, "--out", tmp_path / "model.pt", "--hold-out", "B1")
    assert done.exit_code == 0, done.output
    preprocessing = export_bundle(
        tmp_path / "model.pt", tmp_path / "bundle", parity_tiles=4
    ).manifest.preprocessing
    tiles = synthetic_section("A", 2, 3).tiles
    expected = (tiles[..., ::-1] - np.array([9.0, 8, 7])) / np.array([2.0, 3, 4])
    result = encoder_input(torch.from_numpy(tiles).permute(0, 3, 1, 2), preprocessing)
    np.testing.assert_allclose(result.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-6)
