"""Hist2ST's ConvMixers and THItoGene's capsules against the published formulas in float64."""

from __future__ import annotations

from typing import Any

import torch
from system_cases import small_network
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def build(name: str) -> tuple[Any, Weights]:
    network = small_network(name).double()
    return network, dict(network.state_dict())


def conv(x: Tensor, w: Weights, at: str, **options: Any) -> Tensor:
    return F.conv2d(x, w[f"{at}.weight"], w[f"{at}.bias"], **options)


def batch_norm(x: Tensor, w: Weights, at: str) -> Tensor:
    def of_channel(name: str) -> Tensor:
        return w[f"{at}.{name}"].view(1, -1, 1, 1)

    scaled = (x - of_channel("running_mean")) / torch.sqrt(of_channel("running_var") + 1e-5)
    return scaled * of_channel("weight") + of_channel("bias")


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def test_hist2st_per_tile() -> None:
    """Patches; per block two depthwise convolutions with a residual and a pointwise one; 1 x 1 at the end."""
    network, w = build("hist2st")
    tiles = torch.rand(3, 3, 28, 28, dtype=torch.float64) * 255
    x = conv(tiles, w, "patch_embedding", stride=7)
    for block in range(2):
        at = f"vit.transformer.layer1.{block}"
        channels = x.shape[1]
        y = gelu(batch_norm(conv(x, w, f"{at}.dw.0", padding=2, groups=channels), w, f"{at}.dw.1"))
        y = gelu(batch_norm(conv(y, w, f"{at}.dw.3", padding=2, groups=channels), w, f"{at}.dw.4"))
        x = batch_norm(gelu(conv(x + y, w, f"{at}.pw.0")), w, f"{at}.pw.2")
    expected = conv(x, w, "vit.transformer.down.0").flatten(1)
    torch.testing.assert_close(network.encode_tiles(tiles), expected, rtol=1e-10, atol=1e-9)


def squash(v: Tensor) -> Tensor:
    size = v.square().sum(-1, keepdim=True).sqrt()
    return (1 - 1 / (torch.exp(size) + 1e-20)) * (v / (size + 1e-20))


def test_thitogene_per_tile() -> None:
    """The convolutions without padding, 28 → 24 → 22 → 20 → 9, 16 capsules of 8, and routing in one pass."""
    network, w = build("thitogene")
    tiles = torch.rand(2, 3, 112, 112, dtype=torch.float64)
    x = F.relu(network.odconv2d(tiles))  # tested against its grouped form in test_slide_systems
    for i, stride in ((1, 1), (2, 1), (3, 1), (4, 2)):
        x = conv(x, w, f"caps_layer.conv{i}", stride=stride)
        x = F.relu(batch_norm(x, w, f"caps_layer.batch_norm{i}"))
    primary = conv(x, w, "caps_layer.primary_caps.depthwise_conv", groups=128)
    assert x.shape[2:] == (9, 9) and primary.shape[2:] == (1, 1)
    primary = squash(primary.reshape(2, 16, 8))
    route, bias = w["caps_layer.digit_caps.W"], w["caps_layer.digit_caps.b"]
    expected = []
    for tile in primary:
        u = torch.stack([torch.stack([tile[i] @ of[i] for i in range(16)]) for of in route])  # [k, 16, dim]
        agree = torch.stack([(of @ of.T).sum(1) for of in u]) / route.shape[-1] ** 0.5  # [k, 16]
        share = torch.exp(agree - agree.max(0).values)
        share = share / share.sum(0)  # over the capsules routed to
        expected.append(squash(((share.unsqueeze(-1) + bias) * u).sum(1)))
    features = network.encode_tiles(tiles)
    torch.testing.assert_close(features, torch.stack(expected).flatten(1), rtol=1e-9, atol=1e-9)
