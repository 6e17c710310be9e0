"""mclst-train: its checkpoints export, it resumes after a kill, and its options take effect."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from small_model import Small
from training_runs import QUICK, SECTIONS, TINY, config, export_bank, in_float64, run, synthetic_section

from mclst.export.bundling import export_bundle
from mclst.models.bleep import Bleep
from mclst.models.mclstexp import MclSTExp
from mclst.runtime.errors import CheckpointError, InputError, ReferenceDataError
from mclst.runtime.providers.opening import open_session
from mclst.sections.accuracy import score
from mclst.sections.formats.reference import find_sections, read_section
from mclst.training.checkpoint import PUBLISHED_ROWS, published_state, write_checkpoint
from mclst.training.contrastive import Training, train
from mclst.training.data import encoder_input, read_training_section
from mclst.training.losses import contrastive_loss
from mclst.training.positions import sinusoids
from mclst.training.pretrained_weights import load_weights
from mclst.training.section_digest import sections_sha256
from mclst.training.training_state import resume_training, state_path, write_state
from mclst.training.validation import validate


@pytest.mark.parametrize("positions", ["learnable", "sinusoidal", "naive", "none"])
def test_loss_and_gradient_are_those_of_an_independent_float64_network(positions: Any) -> None:
    training = Training(SECTIONS, config(positions=positions, image_weight=0.3))
    network, pairs = training.network.eval(), training.pairs
    rows = torch.arange(8)
    images = network.encode_tiles(
        encoder_input(pairs.tiles_of(rows).permute(0, 3, 1, 2), training.config.settings.preprocessing)
    ).detach()
    expression, position = pairs.expression[rows], pairs.position[rows]
    trained = training.finish().network  # positions as tables, which the float64 network reads

    def loss64() -> float:
        logits = in_float64(trained, expression.numpy(), position.numpy()) @ images.double().numpy().T / 4.0
        by_spot, by_tile = (
            (np.log(np.exp(of - of.max(1, keepdims=True)).sum(1)) + of.max(1) - np.diag(of)).mean()
            for of in (logits, logits.T)
        )
        return float(0.3 * by_tile + 0.7 * by_spot)

    expected = loss64()
    trained.requires_grad_(True)
    loss = contrastive_loss(
        trained.encode_spots(expression, position), images, temperature=4.0, image_weight=0.3
    )
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    for name in (
        "spot_encoder.0.attn.fn.to_qkv.weight",
        "spot_projection.fc.weight",
        "spot_encoder.0.ff.norm.bias",
    ):
        weight = trained.get_parameter(name)
        index = int(weight.grad.abs().argmax())  # type: ignore[union-attr]
        step = 1e-2
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                weight.view(-1)[index] += sign * step
                ends.append((float(weight.view(-1)[index]), loss64()))
                weight.view(-1)[index] -= sign * step
        slope = (ends[0][1] - ends[1][1]) / (ends[0][0] - ends[1][0])
        assert float(weight.grad.view(-1)[index]) == pytest.approx(slope, rel=2e-3), name  # type: ignore[union-attr]


def test_lambda_weighs_the_two_sides() -> None:
    losses = {weight: train(SECTIONS, config(image_weight=weight)).losses[0] for weight in (0.0, 0.5, 1.0)}
    assert losses[0.5] == pytest.approx((losses[0.0] + losses[1.0]) / 2, rel=1e-5)
    assert abs(losses[0.0] - losses[1.0]) > 1e-4


def test_position_encodings() -> None:
    result = {kind: train(SECTIONS, config(positions=kind, epochs=2)).network for kind in
             ("learnable", "sinusoidal", "naive", "none")}  # fmt: skip
    assert len(result["none"].get_parameter("x_embed.weight")) == 0
    x, y = sinusoids(128, 6)
    assert torch.equal(result["sinusoidal"].get_parameter("x_embed.weight"), x), (
        "a fixed table does not learn"
    )
    assert torch.equal(result["sinusoidal"].get_parameter("y_embed.weight"), y)
    slope = result["naive"].get_parameter("x_embed.weight")
    np.testing.assert_allclose(
        slope.numpy(), np.arange(128)[:, None] * slope[1].numpy(), rtol=1e-5, atol=1e-7
    )
    assert float(slope[1].abs().max()) > 0
    learned = result["learnable"].get_parameter("x_embed.weight")
    before = Training(SECTIONS, config()).network.get_parameter("x_embed.weight")
    changed = (learned != before).any(dim=1)
    assert changed[: int(max(s.array_xy.max() for s in SECTIONS))].any()


def test_sinusoids_distinguish_x_from_y() -> None:
    x, y = (table.double().numpy() for table in sinusoids(40, 7))
    np.testing.assert_allclose(x[:, 0], np.sin(np.arange(40)), atol=1e-6)
    np.testing.assert_allclose(x[:, 1], np.cos(np.arange(40)), atol=1e-6)
    np.testing.assert_allclose(x[:, 2], np.sin(np.arange(40) / 10_000 ** (2 / 4)), atol=1e-6)
    assert (x[:, 4:] == 0).all() and (y[:, :4] == 0).all()
    sums = {tuple(np.round(x[i] + y[j], 6)) for i in range(40) for j in range(40)}
    assert len(sums) == 1600


@pytest.mark.parametrize("positions", ["sinusoidal", "naive", "none"])
def test_every_position_encoding_exports_alone(tmp_path: Path, positions: Any) -> None:
    trained = train(SECTIONS, config(positions=positions))
    bank = export_bank(trained, tmp_path)
    normalized = np.concatenate([s.counts for s in SECTIONS]).astype(np.float64)
    normalized = np.log10(1e4 * normalized / normalized.sum(axis=1, keepdims=True) + 1)
    position = np.concatenate([s.array_xy for s in SECTIONS])
    expected = in_float64(trained.network, normalized, position)  # 16 spots: one sentence of up to 32
    np.testing.assert_allclose(bank.embedding, expected, atol=1e-4)


def test_a_timm_encoder_trains_and_exports(tmp_path: Path) -> None:
    sections = [dataclasses.replace(s, tiles=np.repeat(np.repeat(s.tiles, 2, 1), 2, 2)) for s in SECTIONS]
    tile = TINY.settings.tile.model_copy(update={"size_px": 32})
    settings = TINY.settings.model_copy(update={"tile": tile})
    trained = train(
        sections, dataclasses.replace(TINY, settings=settings, encoder="test_efficientnet", epochs=1)
    )
    ckpt = write_checkpoint(tmp_path / "model.pt", trained)
    bundle = export_bundle(ckpt, tmp_path / "bundle", parity_tiles=4)
    assert bundle.manifest.encoder.name == "test_efficientnet"
    result = open_session(bundle.encoder_path, "cpu").encode(sections[0].tiles[:3])
    pixels = torch.from_numpy(sections[0].tiles[:3]).permute(0, 3, 1, 2)
    expected = trained.network.encode_tiles(encoder_input(pixels, settings.preprocessing))
    np.testing.assert_allclose(result, expected.numpy(), atol=1e-4)


def test_an_encoder_that_rejects_the_tile_size() -> None:
    with pytest.raises(InputError, match="vit_base_patch32_224 does not take tiles of 16 px"):
        Training(SECTIONS, config(encoder="vit_base_patch32_224"))


def test_mixed_precision_stays_near_full_precision() -> None:
    full, half = (train(SECTIONS, config(precision=kind)).losses[0] for kind in ("fp32", "bf16"))
    assert half != full and half == pytest.approx(full, rel=0.05)
    with pytest.raises(ValueError, match="fp16 needs a CUDA device"):
        config(precision="fp16")


def test_a_resumed_run_gives_the_same_weights(tmp_path: Path) -> None:
    uninterrupted = Training(SECTIONS, config(epochs=4, schedule="cosine"))
    for _ in range(4):
        uninterrupted.run_epoch()
    first = Training(SECTIONS, config(epochs=4, schedule="cosine"))
    first.run_epoch()
    first.run_epoch()
    out = tmp_path / "model.pt"
    write_state(out, first, {})
    first.run_epoch()  # lost with the process
    second = Training(SECTIONS, config(epochs=4, schedule="cosine"))
    assert resume_training(out, second, {}) and len(second.losses) == 2
    while not second.finished:
        second.run_epoch()
    assert second.losses == uninterrupted.losses
    for (name, a), b in zip(
        uninterrupted.network.state_dict().items(), second.network.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [({"seed": 3}, "another seed"), ({"learning_rate": 1.0}, "another learning_rate")],
)
def test_a_run_of_other_settings_is_not_resumed(tmp_path: Path, changes: Any, fragment: str) -> None:
    out = tmp_path / "model.pt"
    first = Training(SECTIONS, config(epochs=4))
    first.run_epoch()
    write_state(out, first, {})
    with pytest.raises(InputError, match=fragment):
        resume_training(out, Training(SECTIONS, config(epochs=4, **changes)), {})
    other = [SECTIONS[0], dataclasses.replace(SECTIONS[1], counts=SECTIONS[1].counts + 1)]
    with pytest.raises(InputError, match="another data"):
        resume_training(out, Training(other, config(epochs=4)), {})
    whole = state_path(out).read_bytes()
    weights = first.network.image_projection.fc.weight.detach().numpy().tobytes()
    changed = whole.replace(weights, bytes(len(weights)))  # which torch does not notice
    content = torch.load(state_path(out), weights_only=True)
    others = [
        {**content, "run": []},
        {**content, "run": 3},
        {**content, "state": {}},
        {**content, "state": 3},
    ]
    for damaged in (whole[:500], changed, *others):
        if isinstance(damaged, bytes):
            state_path(out).write_bytes(damaged)
        else:
            torch.save(damaged, state_path(out))
        with pytest.raises(InputError, match=r"is not the state of an interrupted run|of a run with another"):
            resume_training(out, Training(SECTIONS, config(epochs=4)), {})
    assert changed != whole


def test_a_state_with_the_keys_of_earlier_versions_is_resumed(tmp_path: Path) -> None:
    out = tmp_path / "model.pt"
    first = Training(SECTIONS, config(epochs=4))
    first.run_epoch()
    write_state(out, first, {})
    content = torch.load(state_path(out), weights_only=True)
    content["run"]["optimiser"] = content["run"].pop("optimizer")
    augmentation = content["run"]["augmentation"]
    augmentation["colour_jitter"] = augmentation.pop("color_jitter")
    content["state"]["optimiser"] = content["state"].pop("optimizer")
    torch.save(content, state_path(out))
    second = Training(SECTIONS, config(epochs=4))
    assert resume_training(out, second, {}) and second.losses == first.losses
    assert second.run_epoch() == first.run_epoch()
    with pytest.raises(InputError, match="another optimizer"):
        resume_training(out, Training(SECTIONS, config(epochs=4, optimizer="adamw")), {})


KILLED = """
import os, signal, sys
import mclst.training.run as run
from mclst.training.cli import main
write, written = run.write_state, []
def write_and_die(*args):
    write(*args)
    written.append(1)
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
run.write_state = write_and_die
main(sys.argv[1:])
"""


def test_the_sections_are_hashed_once_for_all_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def digest(sections: Any) -> str:
        hashed.append(sections_sha256(sections))
        return hashed[-1]

    monkeypatch.setattr("mclst.training.contrastive.sections_sha256", digest)
    training, second = (Training(SECTIONS, config(epochs=2)) for _ in range(2))
    for _ in range(2):
        training.run_epoch()
        write_state(tmp_path / "model.pt", training, {})
    assert len(hashed) == 1 and resume_training(tmp_path / "model.pt", second, {})


def test_a_killed_command_resumes(small: Small, tmp_path: Path) -> None:
    words = [str(small.folder), *QUICK, "--epochs", "3", "--hold-out", "B1"]
    uninterrupted, killed = tmp_path / "whole.pt", tmp_path / "killed.pt"
    done = run(*words, "--out", uninterrupted)
    assert done.exit_code == 0, done.output
    command = [sys.executable, "-c", KILLED, *words, "--out", str(killed)]
    # To the last bit only with as many threads as the run that was not killed.
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=threads)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert state_path(killed).exists() and not killed.exists()
    again = run(*words, "--out", killed)
    assert again.exit_code == 0, again.output
    assert "resuming after epoch 2" in again.stderr
    assert not state_path(killed).exists()
    a, b = (torch.load(path, weights_only=True)["model"] for path in (uninterrupted, killed))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_command_validates_reports_and_exports(small: Small, tmp_path: Path) -> None:
    out, fragment = tmp_path / "model.pt", tmp_path / "run.json"
    words = ["--validation", "B1", "--published-layout", "--json", fragment, "--out", out]
    done = run(small.folder, *QUICK, *words)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{out}\n"
    result = json.loads(fragment.read_text())
    assert result["sections"] == {"A1": 24, "A2": 24} and len(result["losses"]) == 2
    assert result["chance"] == pytest.approx(np.log(24))
    assert [entry["epoch"] for entry in result["validation"]] == [1, 2]
    bundle = export_bundle(out, tmp_path / "bundle", parity_tiles=4)
    assert [s.name for s in bundle.manifest.bank] == ["A1", "A2"]
    assert bundle.manifest.retrieval is not None and bundle.manifest.retrieval.k == 10
    state = torch.load(tmp_path / "model.state_dict.pt", weights_only=True)
    published = MclSTExp("test_resnet", 12, projection_dim=8, heads=2, head_dim=4)
    published.load_state_dict(state)  # strict: the published names and shapes
    assert len(state["x_embed.weight"]) == PUBLISHED_ROWS
    again = run(small.folder, *QUICK, *words)
    assert again.exit_code == 5 and "exists" in again.stderr


def test_validation_is_what_the_bundle_will_score(small: Small, tmp_path: Path) -> None:
    from mclst.kernels.retriever import Retriever
    from mclst.sections.normalize import gene_wise

    settings = TINY.settings.model_copy(
        update={"retrieval": TINY.settings.retrieval.model_copy(update={"k": 5})}
    )
    training = Training(SECTIONS, dataclasses.replace(TINY, settings=settings, epochs=1))
    training.run_epoch()
    held_out = synthetic_section("C", 11, 5)
    (result,) = validate(training, [held_out])
    assert training.network.training
    bundle = export_bundle(
        write_checkpoint(tmp_path / "model.pt", training.finish()), tmp_path / "bundle", parity_tiles=4
    )
    queries = open_session(bundle.encoder_path, "cpu").encode(held_out.tiles)
    predicted = Retriever(bundle.bank, settings.retrieval.spec()).aggregate(queries).expression
    expected = score(predicted, gene_wise(held_out.counts))
    assert [result.pcc_acg, result.pcc_heg, result.mse, result.mae] == pytest.approx(
        [expected.pcc_acg, expected.pcc_heg, expected.mse, expected.mae], rel=1e-3
    )


@pytest.mark.parametrize("encoder", ["densenet121", "resnet18", "mobilenetv3_small_050"])
def test_initial_weights_from_torchvision_and_timm(tmp_path: Path, encoder: str) -> None:
    torch.manual_seed(1)
    if encoder.startswith("mobilenet"):
        import timm

        source: Any = timm.create_model(encoder, num_classes=10)
    else:
        source = torchvision.models.get_model(encoder, weights=None)
    state = source.state_dict()
    if encoder == "densenet121":  # as the file of ImageNet weights spells its names
        state = {
            name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): t for name, t in state.items()
        }
    torch.save(state, tmp_path / "start.pth")
    network = MclSTExp(encoder, 6, projection_dim=8, heads=2, head_dim=4, depth=1, positions=4).eval()
    assert load_weights(network, tmp_path / "start.pth", encoder) == f"{encoder} from start.pth"
    tile = torch.rand(1, 3, 64, 64)
    result = network.image_encoder(tile)
    source.eval()
    if encoder == "resnet18":
        source.fc = torch.nn.Identity()
        expected = source(tile)
    elif encoder == "densenet121":
        expected = source.features(tile).mean(dim=(2, 3))
    else:
        source.reset_classifier(0)
        expected = source(tile)
    torch.testing.assert_close(result, expected)


def test_a_vit_of_a_class_token_starts_as_timm_starts_it(tmp_path: Path) -> None:
    """Pooled by its mean it has fc_norm in place of norm; its file was once refused as another encoder's."""
    import timm

    name = "vit_tiny_patch16_224"
    torch.manual_seed(2)
    state = timm.create_model(name).state_dict()
    torch.save({n: t + 0.1 * torch.randn(t.shape) for n, t in state.items()}, tmp_path / "vit.pth")
    network = Bleep(name, 6, projection_dim=8).eval()
    assert load_weights(network, tmp_path / "vit.pth", name).startswith(f"{name} from vit.pth")
    expected = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "vit.pth")},
        num_classes=0,
        global_pool="avg",
    ).eval()
    tile = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(network.image_encoder(tile), expected(tile))


def test_initial_weights_from_a_model_and_invalid_files(tmp_path: Path) -> None:
    trained = train(SECTIONS, config())
    ckpt = write_checkpoint(tmp_path / "model.pt", trained)
    loaded: list[str] = []
    training = Training(
        SECTIONS, config(seed=9), lambda net: loaded.append(load_weights(net, ckpt, "test_resnet"))
    )
    assert "other tensors from model.pt" in loaded[0]
    a, b = training.network.image_projection.fc.weight, trained.network.image_projection.fc.weight
    assert torch.equal(a, b)
    network = MclSTExp("resnet50", 6, projection_dim=8, heads=2, head_dim=4, depth=1, positions=4)
    with pytest.raises(CheckpointError, match=r"of the \d+ tensors of resnet50"):
        load_weights(network, ckpt, "resnet50")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match="no weights that can be read safely"):
        load_weights(network, tmp_path / "text.pt", "resnet50")


def test_published_state_keeps_the_trained_rows() -> None:
    trained = train(SECTIONS, config())
    state = published_state(trained)
    own = trained.network.get_parameter("x_embed.weight")
    assert torch.equal(state["x_embed.weight"][: len(own)], own)
    assert not state["x_embed.weight"][len(own) :].any()
    network = MclSTExp(
        "test_resnet", 6, projection_dim=8, heads=2, head_dim=4, depth=1, positions=PUBLISHED_ROWS
    )
    assert set(state) == set(network.state_dict())


@pytest.mark.parametrize(
    ("words", "code", "fragment"),
    [
        (["--encoder", "resnet5000"], 2, "is no image encoder of mclst or of this timm"),
        (
            ["--k", "49"],
            4,
            "k is 49 and the training sections have 48 spots together; give --k of at most 48",
        ),
        (["--sections", "Z9"], 4, "section 'Z9' does not exist"),
        (["--device", "cuda"], 6, "there is no device cuda"),
        (["--precision", "fp16"], 2, "fp16 needs a CUDA device"),
        (["--device", "abacus"], 6, "there is no device abacus; choose --device cpu, cuda or cuda:N"),
        (["--device", "meta"], 6, "there is no device meta"),
        (["--device", "cuda:999"], 6, "there is no device cuda:999"),
        (["--temperature", "0"], 2, "give a finite temperature above 0"),
        (["--temperature", "inf"], 2, "give a finite temperature above 0"),
        (["--learning-rate", "0"], 2, "give a rate above 0"),
        (["--weight-decay", "-1"], 2, "a decay of 0 or more"),
        (["--seed", str(1 << 64)], 2, "seed is 18446744073709551616"),
        (["--tile-mpp", "0"], 2, "Error: tile.mpp is 0.0: input should be greater than 0.01\n"),
        (["--weighting", "similarity"], 2, "weighting 'similarity' is of cosines, not of 'l1'"),
        (["--weighting", "similarity", "--distance", "cosine"], 4, "k is 10; give --k 48"),
        (["--tile-mpp", "0.5"], 4, "give --mpp"),
        (["--init", "absent.pt"], 4, "absent.pt cannot be read"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    small: Small, tmp_path: Path, words: list[str], code: int, fragment: str
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    done = run(small.folder, *QUICK, "--hold-out", "B1", "--out", tmp_path / "model.pt", *words)
    assert done.exit_code == code and fragment in done.stderr, done.output
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_spots_outside_the_image_are_refused_as_mclst_infer_does(small: Small, tmp_path: Path) -> None:
    """Full-resolution positions beside a downscaled picture once gave a checkpoint and exit 0."""
    folder = tmp_path / "sections"
    shutil.copytree(small.folder, folder)
    table = pd.read_csv(folder / "spots/A1_selection.tsv", sep="\t")
    table[["pixel_x", "pixel_y"]] *= 17.0
    table.to_csv(folder / "spots/A1_selection.tsv", sep="\t", index=False)
    done = run(folder, *QUICK, "--hold-out", "B1", "--out", tmp_path / "model.pt")
    assert done.exit_code == 4, done.output
    spot = pd.read_csv(folder / "counts/A1.tsv", sep="\t", index_col=0).index
    xy = table.set_index(table.x.astype(str) + "x" + table.y.astype(str)).loc[spot, ["pixel_x", "pixel_y"]]
    outside = ~((xy >= 0).all(axis=1) & (xy.pixel_x < 240) & (xy.pixel_y < 200))
    assert f"spot {outside.idxmax()} at x" in done.stderr
    assert f"{outside.sum() - 1} more of 24" in done.stderr and "(240 x 200 px)" in done.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["sections"]


def test_sections_without_an_array_are_read_for_training_without_positions(small: Small) -> None:
    section = dataclasses.replace(read_section(find_sections(small.folder)["A1"]), array_xy=None)
    tile, genes = TINY.settings.tile, section.genes.tolist()
    result = read_training_section(section, genes, tile, needs_array=False)
    assert result.array_xy.shape == (24, 2) and not result.array_xy.any()
    with pytest.raises(ReferenceDataError, match=r"no array coordinates \(only --positions none"):
        read_training_section(section, genes, tile)
