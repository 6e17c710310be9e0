"""Small training runs: sections, settings, and the command."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner, Result
from scipy.special import erf

from mclst.export.bundling import export_bundle
from mclst.models.mclstexp import MclSTExp
from mclst.runtime.bundle.bank import Bank
from mclst.runtime.bundle.manifest import Context, Retrieval, Settings, Tile
from mclst.training.checkpoint import write_checkpoint
from mclst.training.cli import main
from mclst.training.contrastive import TrainedModel
from mclst.training.data import TrainingSection
from mclst.training.settings import Augmentation, TrainConfig

GENES = tuple(f"GENE{i}" for i in range(6))

PLAIN = Augmentation(color_jitter=0.0, horizontal_flip=False, rotation_deg=0.0)

TINY = TrainConfig(
    Settings(
        heads=2,
        tile=Tile(size_px=16),
        retrieval=Retrieval(k=3, rank="cosine", distance="l1", weighting="inverse-square", temperature=1.0),
    ),
    encoder="test_resnet",
    projection_dim=8,
    head_dim=4,
    depth=1,
    temperature=4.0,
    batch_size=16,
    epochs=3,
    learning_rate=1e-3,
    augmentation=PLAIN,
)


def synthetic_section(name: str, spots: int, seed: int) -> TrainingSection:
    """A section with two kinds of spots that differ in color and expression."""
    rng = np.random.default_rng(seed)
    kind = np.arange(spots) % 2
    tiles = rng.integers(0, 60, (spots, 16, 16, 3)) + 150 * kind[:, None, None, None]
    rate = np.where(kind[:, None] == np.arange(6)[None] % 2, 40, 4)
    return TrainingSection(
        name,
        GENES,
        tuple(f"{i}x{i + 1}" for i in range(spots)),
        tiles.astype(np.uint8),
        rng.poisson(rate).astype(np.float32),
        np.stack([np.arange(spots), np.arange(spots) + 1], axis=1),
    )


SECTIONS = [synthetic_section("A", 9, 1), synthetic_section("B", 7, 2)]


QUICK = shlex.split(
    "--encoder test_resnet --tile-px 32 --heads 2 --head-dim 4 --projection-dim 8 "
    "--k 10 --epochs 2 --batch-size 24 --no-flip --rotation 0"
)


def run(*words: Any) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def config(**changes: Any) -> TrainConfig:
    positions = changes.get("positions", "learnable")
    context = Context(spots=32, sentences="file", positions="none" if positions == "none" else "array")
    settings = TINY.settings.model_copy(update={"context": context})
    return dataclasses.replace(TINY, settings=settings, **{"epochs": 1, **changes})


def export_bank(trained: TrainedModel, folder: Path) -> Bank:
    """The bank of its bundle; the image side, which a bank does not need, gets fixed weights: one trace."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fixed = MclSTExp("test_resnet", len(GENES), projection_dim=TINY.projection_dim, heads=2, head_dim=4)
    for name in ("image_encoder", "image_projection"):
        getattr(trained.network, name).load_state_dict(getattr(fixed, name).state_dict())
    ckpt = write_checkpoint(folder / "model.pt", trained)
    return export_bundle(ckpt, folder / "bundle", parity_tiles=4).bank


def in_float64(network: Any, expression: Any, position: Any) -> Any:
    """The spot encoder and its projection in float64 numpy."""
    w = {name: tensor.detach().double().numpy() for name, tensor in network.state_dict().items()}

    def linear(x: Any, name: str) -> Any:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def norm(x: Any, name: str) -> Any:
        centered = x - x.mean(-1, keepdims=True)
        scaled = centered / np.sqrt(np.square(centered).mean(-1, keepdims=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: Any) -> Any:
        return 0.5 * x * (1 + erf(x / np.sqrt(2)))

    x = expression.astype(np.float64)
    if len(w["x_embed.weight"]):
        x = x + w["x_embed.weight"][position[:, 0]] + w["y_embed.weight"][position[:, 1]]
    for block in range(len(network.spot_encoder)):
        prefix = f"spot_encoder.{block}"
        heads = 2
        qkv = linear(norm(x, f"{prefix}.attn.norm"), f"{prefix}.attn.fn.to_qkv")
        q, k, v = (part.reshape(len(x), heads, -1) for part in np.split(qkv, 3, axis=1))
        logits = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[-1])
        share = np.exp(logits - logits.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        mixed = np.einsum("hij,jhd->ihd", share, v).reshape(len(x), -1)
        x = x + linear(mixed, f"{prefix}.attn.fn.to_out.0")
        inner = gelu(linear(norm(x, f"{prefix}.ff.norm"), f"{prefix}.ff.fn.net.0"))
        x = x + linear(inner, f"{prefix}.ff.fn.net.3")
    p = linear(x, "spot_projection.projection")
    return norm(p + linear(gelu(p), "spot_projection.fc"), "spot_projection.layer_norm")
