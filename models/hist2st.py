"""Hist2ST (Zeng et al. 2022): ConvMixer per tile; Transformer, graph layers and LSTM over a slide.

State-dict compatible with the published class `Hist2ST` without its training-only heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mclst.models.slide_transformer import PUBLISHED_SETTINGS, SlideModel, ViT, attention_kwargs, read_traits
from mclst.models.system import State, System, Traits, count_blocks
from mclst.models.transformer import Block, SlideAttention


class ConvMixer(nn.Module):
    """Two depthwise convolutions with one residual, then a pointwise convolution."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        depthwise = [
            nn.Conv2d(channels, channels, kernel, groups=channels, padding=kernel // 2) for _ in range(2)
        ]
        self.dw = nn.Sequential(
            depthwise[0],
            nn.BatchNorm2d(channels),
            nn.GELU(),
            depthwise[1],
            nn.BatchNorm2d(channels),
            nn.GELU(),
        )
        self.pw = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU(), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, channels, H, W] → the same shape."""
        out: Tensor = self.pw(self.dw(x) + x)
        return out


class NeighborMean(nn.Module):
    """h ← L2-normalized ReLU(W · mean of the neighbors' h), without a self loop."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)

    def forward(self, h: Tensor, neighbors: Tensor, linked: Tensor) -> Tensor:
        """h float32 [N, width], neighbors int64 [N, K], linked float32 [N, K] → float32 [N, width]."""
        # The published code divides 0/0 for a spot without neighbors, and the NaN reaches every spot.
        total = (h[neighbors] * linked.unsqueeze(-1)).sum(1)
        mean = total / linked.sum(1, keepdim=True).clamp(min=1)
        return nn.functional.normalize(torch.relu(mean @ self.weight.T), dim=1)


def unrolled_lstm(lstm: nn.LSTM, steps: list[Tensor]) -> list[Tensor]:
    """Output of `lstm` at each step float32 [N, width] from a zero state, as plain matrix products."""
    # Providers differ in their LSTM operator; matrix products are the same everywhere.
    for layer in range(lstm.num_layers):
        weights = [
            getattr(lstm, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        hidden = cell = torch.zeros_like(steps[0])
        outputs = []
        for x in steps:
            gates = x @ weights[0].T + weights[2] + hidden @ weights[1].T + weights[3]
            i, f, g, o = gates.chunk(4, dim=1)  # PyTorch's order: input, forget, cell, output
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
            outputs.append(hidden)
        steps = outputs
    return steps


class Mixer(nn.Module):
    """Layers under their published names: `layer1` and `down` per tile, the others over the slide."""

    def __init__(
        self,
        channels: int,
        kernel: int,
        width: int,
        hidden: int,
        heads: int,
        head_dim: int,
        depths: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(*[ConvMixer(channels, kernel) for _ in range(depths[0])])
        self.layer2 = nn.Sequential(
            *[Block(width, SlideAttention(width, heads, head_dim), hidden) for _ in range(depths[1])]
        )
        self.layer3 = nn.ModuleList([NeighborMean(width) for _ in range(depths[2])])
        self.jknet = nn.Sequential(nn.LSTM(width, width, 2))
        self.down = nn.Sequential(nn.Conv2d(channels, channels // 8, 1), nn.Flatten())


class Hist2St(SlideModel):
    """The published network; `depths` counts ConvMixers, Transformer blocks and graph layers."""

    def __init__(
        self,
        genes: int,
        *,
        tile_px: int = 112,
        patch: int = 7,
        channels: int = 32,
        kernel: int = 5,
        heads: int = 16,
        head_dim: int = 64,
        depths: tuple[int, int, int] = (2, 8, 4),
        positions: int = 64,
    ) -> None:
        width = (tile_px // patch) ** 2 * (channels // 8)
        super().__init__(positions, width)
        self.patch_embedding = nn.Conv2d(3, channels, patch, patch)
        self.vit = ViT(Mixer(channels, kernel, width, width, heads, head_dim, depths))
        self.gene_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, genes))

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, X, Y], x-major, 0..255 → features float32 [N, width]."""
        mixer = self.vit.transformer
        out: Tensor = mixer.down(mixer.layer1(self.patch_embedding(tiles)))
        return out

    def predict_expression(
        self, features: Tensor, position: Tensor, neighbors: Tensor, linked: Tensor
    ) -> Tensor:
        """All spots of a slide: features [N, width], position int64 [N, 2], graph [N, K] → [N, genes]."""
        mixer = self.vit.transformer
        x, y = self.embed_positions(position)
        h = mixer.layer2(features + (x + y))
        steps = []
        for layer in mixer.layer3:
            h = layer(h, neighbors, linked)
            steps.append(h)
        lstm = mixer.jknet[0]
        assert isinstance(lstm, nn.LSTM)
        mean = torch.stack(unrolled_lstm(lstm, steps)).mean(0)
        out: Tensor = self.gene_head(mean)
        return out


def _traits(state: State, encoder: str | None) -> Traits:
    prefix = "vit.transformer."
    channels, _, patch, _ = state["patch_embedding.weight"].shape
    width = state["x_embed.weight"].shape[1]
    side = round((width / max(1, channels // 8)) ** 0.5)
    if side**2 * (channels // 8) != width:
        raise ValueError(
            f"its {width} features per tile are no square of patches of {channels // 8} channels"
        )
    depths = tuple(count_blocks(state, f"{prefix}layer{i}.") for i in (1, 2, 3))
    return read_traits(
        state,
        encoder="ConvMixer",
        genes="gene_head.1.weight",
        width=width,
        qkv=f"{prefix}layer2.0.attn.fn.to_qkv.weight",
        depth=depths[1],
        tile_px=side * patch,
        patch=patch,
        channels=channels,
        kernel=state[f"{prefix}layer1.0.dw.0.weight"].shape[-1],
        depths=depths,
    )


def _build(traits: Traits, heads: int) -> Hist2St:
    return Hist2St(traits.genes, **traits.extra, **attention_kwargs(traits, heads))


SYSTEM = System(
    name="hist2st",
    title="Hist2ST",
    kind="slide",
    claims=lambda state: "vit.transformer.jknet.0.weight_ih_l0" in state,
    traits=_traits,
    build=_build,
    settings={**PUBLISHED_SETTINGS, "graph": {"neighbors": 4, "prune": "grid"}},
    supports=frozenset({"heads", "graph"}),
    training_only=("mean.", "disp.", "pi.", "coef.", "hr.", "hp."),
)
