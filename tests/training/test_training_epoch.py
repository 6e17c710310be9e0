"""An epoch of training against float64 networks, losses and optimizers written again, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from training_runs import config, synthetic_section

from mclst.training import contrastive
from mclst.training.contrastive import Training

SECTIONS = [synthetic_section("A", 9, 1), synthetic_section("B", 7, 2)]
CHILDREN = ("conv1", "bn1", "", "", "layer1", "layer2", "layer3", "layer4")
"""torchvision's ResNet as the published mclSTExp numbers it."""
Weights = dict[str, Tensor]


def by_name(w: Weights) -> Weights:
    """The image network's weights under torchvision's names."""
    inside = "image_encoder.model."
    renamed = {}
    for name, tensor in w.items():
        if name.startswith(inside):
            first, _, rest = name.removeprefix(inside).partition(".")
            renamed[f"{CHILDREN[int(first)] if first.isdigit() else first}.{rest}"] = tensor
    return renamed


def batch_norm(x: Tensor, w: Weights, at: str) -> Tensor:
    """Of a network in training: by the batch's own mean and biased variance."""
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(var + 1e-5) * w[f"{at}.weight"].view(1, -1, 1, 1) + w[f"{at}.bias"].view(
        1, -1, 1, 1
    )


def resnet18(w: Weights, x: Tensor) -> Tensor:
    x = batch_norm(F.conv2d(x, w["conv1.weight"], stride=2, padding=3), w, "bn1").clamp(min=0)
    x = F.max_pool2d(x, 3, 2, 1)
    for layer in range(1, 5):
        for block in range(2):
            at, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = batch_norm(F.conv2d(x, w[f"{at}.conv1.weight"], stride=stride, padding=1), w, f"{at}.bn1")
            y = batch_norm(F.conv2d(y.clamp(min=0), w[f"{at}.conv2.weight"], padding=1), w, f"{at}.bn2")
            if stride == 2:
                x = batch_norm(F.conv2d(x, w[f"{at}.downsample.0.weight"], stride=2), w, f"{at}.downsample.1")
            x = (x + y).clamp(min=0)
    return x.mean((2, 3))


def linear(x: Tensor, w: Weights, at: str) -> Tensor:
    return x @ w[f"{at}.weight"].T + w.get(f"{at}.bias", torch.zeros((), dtype=x.dtype))


def layer_norm(x: Tensor, w: Weights, at: str) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return (
        centered / torch.sqrt(centered.square().mean(-1, keepdim=True) + 1e-5) * w[f"{at}.weight"]
        + w[f"{at}.bias"]
    )


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def project(x: Tensor, w: Weights, at: str) -> Tensor:
    p = linear(x, w, f"{at}.projection")
    return layer_norm(p + linear(gelu(p), w, f"{at}.fc"), w, f"{at}.layer_norm")


def spots_of_mclstexp(w: Weights, x: Tensor, place: Tensor) -> Tensor:
    """Two heads of four, one block."""
    x = x + w["x_embed.weight"][place[:, 0]] + w["y_embed.weight"][place[:, 1]]
    parts = linear(layer_norm(x, w, "spot_encoder.0.attn.norm"), w, "spot_encoder.0.attn.fn.to_qkv")
    q, k, v = (part.reshape(len(x), 2, 4).transpose(0, 1) for part in parts.split(8, dim=1))
    mixed = torch.softmax(q @ k.transpose(1, 2) / 2, dim=2) @ v
    x = x + linear(mixed.transpose(0, 1).reshape(len(x), 8), w, "spot_encoder.0.attn.fn.to_out.0")
    inner = gelu(linear(layer_norm(x, w, "spot_encoder.0.ff.norm"), w, "spot_encoder.0.ff.fn.net.0"))
    return project(x + linear(inner, w, "spot_encoder.0.ff.fn.net.3"), w, "spot_projection")


def loss_of(system: str, w: Weights, pixels: Tensor, x: Tensor, place: Tensor) -> Tensor:
    tiles = project(resnet18(by_name(w), pixels), w, "image_projection")
    spots = spots_of_mclstexp(w, x, place) if system == "mclstexp" else project(x, w, "spot_projection")
    logits = spots @ tiles.T / 4.0
    rows, columns = (logits - torch.logsumexp(logits, dim=d, keepdim=True) for d in (1, 0))
    if system == "mclstexp":
        return -(0.7 * rows.diag() + 0.3 * columns.diag()).mean()
    alike = (spots @ spots.T + tiles @ tiles.T) / 2 / 4.0
    target = torch.exp(alike - torch.logsumexp(alike, dim=1, keepdim=True))
    # Each tile's picks are the column of its own, and so the mean over tiles the sum over all pairs.
    return -(0.7 * (target * rows).sum() + 0.3 * (target * columns).sum()) / len(x)


def adam(w: Weights, grad: Weights, past: dict[str, tuple[Tensor, Tensor]], t: int, *, coupled: bool) -> None:
    """Kingma & Ba 2015; the decay in the gradient, or beside it (Loshchilov & Hutter 2019)."""
    rate, decay = 1e-3, 1e-3
    for name, g in grad.items():
        if coupled:
            g = g + decay * w[name]
        else:
            w[name] = w[name] * (1 - rate * decay)
        m, v = past.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        past[name] = m, v
        w[name] = w[name] - rate * (m / (1 - 0.9**t)) / (torch.sqrt(v / (1 - 0.999**t)) + 1e-8)


@pytest.mark.parametrize("system", ["mclstexp", "bleep"])
def test_each_step_of_an_epoch_agrees_with_float64(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, gradients and new weights of each step, from the weights that the step began with."""
    of_system = (
        {"positions": "learnable", "optimizer": "adam"}
        if system == "mclstexp"
        else {"positions": "none", "optimizer": "adamw"}
    )
    plain = config(system=system, batch_size=8, image_weight=0.3, encoder="resnet18", **of_system)
    training = Training(SECTIONS, plain)
    learned = [n for n, p in training.network.named_parameters() if p.requires_grad]
    order: list[Tensor] = []
    real = contrastive.batches
    monkeypatch.setattr(contrastive, "batches", lambda n, size: (order.append(r) or r for r in real(n, size)))
    began, grads = [weights(training)], []
    step = training.optimizer.step

    def watched() -> None:
        named = training.network.named_parameters()
        grads.append({n: p.grad.double().clone() for n, p in named if p.grad is not None})
        step()
        began.append(weights(training))

    monkeypatch.setattr(training.optimizer, "step", watched)
    losses: list[float] = []
    training.run_epoch(lambda step: losses.append(step.loss))
    assert len(losses) == len(order) == len(grads) == 2 and losses[0] != losses[1]

    counts = np.concatenate([s.counts for s in SECTIONS]).astype(np.float64)
    expression = torch.from_numpy(np.log10(1e4 * counts / counts.sum(1, keepdims=True) + 1))
    place = torch.from_numpy(np.concatenate([s.array_xy for s in SECTIONS]))
    pixels = torch.from_numpy(np.concatenate([s.tiles for s in SECTIONS]) / 255).permute(0, 3, 1, 2)
    past: dict[str, tuple[Tensor, Tensor]] = {}
    for t, (rows, value, grad) in enumerate(zip(order, losses, grads, strict=True), start=1):
        leaves = {n: x.clone().requires_grad_(n in learned) for n, x in began[t - 1].items()}
        loss = loss_of(system, leaves, pixels[rows], expression[rows], place[rows])
        assert value == pytest.approx(float(loss.detach()), rel=1e-5)
        expected = torch.autograd.grad(loss, [leaves[n] for n in learned])
        largest = max(float(g.abs().max()) for g in expected)
        for name, own in zip(learned, expected, strict=True):
            off = float((grad[name] - own).abs().max())
            assert off < 1e-3 * max(float(own.abs().max()), 1e-2 * largest), name
        after = {n: began[t - 1][n] for n in learned}
        adam(after, grad, past, t, coupled=system == "mclstexp")
        for name in learned:
            assert float((after[name] - began[t][name]).abs().max()) < 1e-6, name


def weights(training: Training) -> Weights:
    return {n: x.detach().double().clone() for n, x in training.network.state_dict().items()}
