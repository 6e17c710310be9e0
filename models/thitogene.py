"""THItoGene (Jia et al. 2024): capsules per tile; Transformer and graph attention over a slide.

State-dict compatible with the published class `THItoGene`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mclst.models.slide_transformer import PUBLISHED_SETTINGS, SlideModel, ViT, attention_kwargs, read_traits
from mclst.models.system import State, System, Traits, count_blocks
from mclst.models.transformer import SlideTransformer

CAPSULES, CAPSULE_DIM = 16, 8
"""Number and size of the primary capsules."""


class KernelAttention(nn.Module):
    """ODConv's attention over channels, filters, kernel cells and kernels, from a tile's mean color."""

    def __init__(self, channels: int, filters: int, kernel: int, kernels: int, width: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, width, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.channel_fc = nn.Conv2d(width, channels, 1)
        self.filter_fc = nn.Conv2d(width, filters, 1)
        self.spatial_fc = nn.Conv2d(width, kernel * kernel, 1)
        self.kernel_fc = nn.Conv2d(width, kernels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """float32 [N, C, H, W] → attentions [N, M, 1, 1], M: channels, filters, kernel², kernels."""
        mean = torch.relu(self.bn(self.fc(x.mean((2, 3), keepdim=True))))
        return (
            torch.sigmoid(self.channel_fc(mean)),
            torch.sigmoid(self.filter_fc(mean)),
            torch.sigmoid(self.spatial_fc(mean)),
            torch.softmax(self.kernel_fc(mean), dim=1),
        )


class DynamicConv(nn.Module):
    """Omni-dimensional dynamic convolution (ODConv) with stride equal to the kernel size."""

    # Published as a convolution with one group per tile, which ONNX cannot express for a dynamic batch.
    # With stride = kernel, cutting patches is a reshape and the convolution a matrix product per tile.

    def __init__(
        self, channels: int = 3, filters: int = 16, kernel: int = 4, kernels: int = 4, width: int = 16
    ) -> None:
        super().__init__()
        self.attention = KernelAttention(channels, filters, kernel, kernels, width)
        self.weight = nn.Parameter(torch.randn(kernels, filters, channels, kernel, kernel) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, C, H, W], H and W multiples of `kernel` → float32 [N, F, H / kernel, W / kernel]."""
        _, filters, channels, kernel, _ = self.weight.shape
        rows, columns = x.shape[2] // kernel, x.shape[3] // kernel
        by_channel, by_filter, by_cell, by_kernel = self.attention(x)
        patches = (x * by_channel).reshape(-1, channels, rows, kernel, columns, kernel)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows * columns, channels * kernel * kernel)
        mixed = (by_kernel.flatten(1) @ self.weight.flatten(1)).reshape(
            -1, filters, channels, kernel * kernel
        )
        weight = (mixed * by_cell.flatten(1)[:, None, None]).flatten(2)
        out = (weight @ patches.transpose(1, 2)).reshape(-1, filters, rows, columns)
        filtered: Tensor = out * by_filter
        return filtered


def squash(x: Tensor) -> Tensor:
    """(1 − e^−|v|) · v / |v| along the last axis."""
    # Equal to the published 1 − 1/(e^|v| + 1e-20), but e^−|v| cannot overflow in half precision.
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return -torch.expm1(-norm) * (x / (norm + 1e-20))


class PrimaryCapsules(nn.Module):
    """A depthwise convolution over the whole feature map, reshaped into capsules."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise_conv = nn.Conv2d(channels, channels, kernel, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, 128, 9, 9] → float32 [N, 16, 8]."""
        return squash(self.depthwise_conv(x).reshape(-1, CAPSULES, CAPSULE_DIM))


class Routing(nn.Module):
    """One-pass self-attention routing with the softmax over the output capsules."""

    def __init__(self, capsules: int, dim: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(capsules, CAPSULES, CAPSULE_DIM, dim) * 0.3)
        self.b = nn.Parameter(torch.zeros(capsules, CAPSULES, 1))

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, 16, 8] → float32 [N, capsules, dim]."""
        u = torch.einsum("nji,kjiz->nkjz", x, self.W)
        # Σ_k Σ_z u_iz u_kz without materializing all pairs.
        agreement = (u * u.sum(2, keepdim=True)).sum(-1, keepdim=True)
        share = torch.softmax(agreement / self.W.shape[-1] ** 0.5, dim=1) + self.b
        return squash((u * share).sum(2))


class CapsNet(nn.Module):
    """Efficient-CapsNet: four convolutions, primary capsules, one routing."""

    def __init__(self, capsules: int, dim: int) -> None:
        super().__init__()
        self.conv1, self.batch_norm1 = nn.Conv2d(16, 32, 5), nn.BatchNorm2d(32)
        self.conv2, self.batch_norm2 = nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64)
        self.conv3, self.batch_norm3 = nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64)
        self.conv4, self.batch_norm4 = nn.Conv2d(64, 128, 3, stride=2), nn.BatchNorm2d(128)
        self.primary_caps = PrimaryCapsules(128, 9)
        self.digit_caps = Routing(capsules, dim)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, 16, 28, 28] → float32 [N, capsules, dim]."""
        x = torch.relu(self.batch_norm1(self.conv1(x)))
        x = torch.relu(self.batch_norm2(self.conv2(x)))
        x = torch.relu(self.batch_norm3(self.conv3(x)))
        x = torch.relu(self.batch_norm4(self.conv4(x)))
        out: Tensor = self.digit_caps(self.primary_caps(x))
        return out


class GraphAttention(nn.Module):
    """Graph attention over edges, with weights that sum to 1 per neighbor instead of per spot.

    Notes
    -----
    The published adjacency has a batch axis, so its softmax over axis 1 normalizes each column: all spots
    that share a neighbor. A column without edges is fully masked there, hence uniform: that spot adds 1/N of
    itself to all spots.
    """

    # Edges instead of a dense mask: a mask value of -9e15 would overflow in half precision.

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(width, out) / width**0.5)
        self.a = nn.Parameter(torch.randn(2 * out, 1) / out**0.5)

    def forward(self, h: Tensor, neighbors: Tensor, linked: Tensor) -> Tensor:
        """h float32 [N, width], neighbors int64 [N, K], linked float32 [N, K] → float32 [N, out]."""
        wh = h @ self.W
        of_spot, of_neighbor = (wh @ half for half in self.a.chunk(2))
        score = nn.functional.leaky_relu(of_spot + of_neighbor[neighbors].squeeze(-1), 0.01)
        target, lowest = neighbors.flatten(), score.amin((0, 1))
        score = torch.where(linked > 0, score, lowest)
        zeros = torch.zeros_like(of_spot).squeeze(-1)
        highest = (zeros + lowest).scatter_reduce(0, target, score.flatten(), "amax")
        share = torch.exp(score - highest[neighbors]) * linked
        total = zeros.scatter_reduce(0, target, share.flatten(), "sum")
        weight = share / torch.where(total > 0, total, 1.0)[neighbors]
        has_edges = (total > 0).to(wh.dtype).unsqueeze(-1)
        uniform = (wh * (1 - has_edges)).mean(0, keepdim=True)
        return (wh[neighbors] * weight.unsqueeze(-1)).sum(1) + uniform


class MultiHead(nn.Module):
    """Parallel graph attentions, then one over their concatenated output."""

    def __init__(self, width: int, hidden: int, out: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        for head in range(heads):
            self.add_module(f"attention_{head}", GraphAttention(width, hidden))
        self.out_att = GraphAttention(hidden * heads, out)

    def forward(self, h: Tensor, neighbors: Tensor, linked: Tensor) -> Tensor:
        """h float32 [N, width] and the graph [N, K] → float32 [N, out]."""
        heads = [getattr(self, f"attention_{head}") for head in range(self.heads)]
        combined = torch.cat([nn.functional.elu(head(h, neighbors, linked)) for head in heads], dim=1)
        return nn.functional.elu(self.out_att(combined, neighbors, linked))


class ThitoGene(SlideModel):
    """The published network for tiles of 112 px."""

    def __init__(
        self,
        genes: int,
        *,
        depth: int = 4,
        heads: int = 16,
        head_dim: int = 64,
        hidden: int = 2048,
        capsules: int = 20,
        route_dim: int = 64,
        graph_hidden: int = 1024,
        graph_out: int = 512,
        graph_heads: int = 8,
        head_hidden: int = 1024,
        positions: int = 64,
    ) -> None:
        super().__init__(positions, route_dim)
        width = (capsules + 2) * route_dim
        self.odconv2d = DynamicConv()
        self.caps_layer = CapsNet(capsules, route_dim)
        self.vit = ViT(SlideTransformer(width, heads, head_dim, hidden, depth))
        self.gat = MultiHead(width, graph_hidden, graph_out, graph_heads)
        self.gene_head = nn.Sequential(
            nn.Linear(graph_out, head_hidden),
            nn.ReLU(),
            nn.LayerNorm(head_hidden),
            nn.Linear(head_hidden, genes),
        )

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, 112, 112], x-major, 0..255 → features float32 [N, capsules · route_dim]."""
        out: Tensor = self.caps_layer(torch.relu(self.odconv2d(tiles))).flatten(1)
        return out

    def predict_expression(
        self, features: Tensor, position: Tensor, neighbors: Tensor, linked: Tensor
    ) -> Tensor:
        """All spots of a slide: features float32 [N, F], position int64 [N, 2], graph [N, K] → [N, genes]."""
        h = self.vit(torch.cat([features, *self.embed_positions(position)], dim=1))
        out: Tensor = self.gene_head(self.gat(h, neighbors, linked))
        return out


def _traits(state: State, encoder: str | None) -> Traits:
    capsules, _, _, route_dim = state["caps_layer.digit_caps.W"].shape
    layers = "vit.transformer.layers."
    return read_traits(
        state,
        encoder="ODConv and Efficient-CapsNet",
        genes="gene_head.3.weight",
        width=capsules * route_dim,
        qkv=f"{layers}0.0.fn.to_qkv.weight",
        depth=count_blocks(state, layers),
        hidden=len(state[f"{layers}0.1.fn.net.0.weight"]),
        capsules=capsules,
        route_dim=route_dim,
        graph_hidden=state["gat.attention_0.W"].shape[1],
        graph_out=state["gat.out_att.W"].shape[1],
        graph_heads=count_blocks(state, "gat.attention_"),
        head_hidden=len(state["gene_head.0.weight"]),
    )


def _build(traits: Traits, heads: int) -> ThitoGene:
    return ThitoGene(traits.genes, depth=traits.depth, **traits.extra, **attention_kwargs(traits, heads))


SYSTEM = System(
    name="thitogene",
    title="THItoGene",
    kind="slide",
    claims=lambda state: "odconv2d.weight" in state and "gat.out_att.W" in state,
    traits=_traits,
    build=_build,
    settings={**PUBLISHED_SETTINGS, "graph": {"neighbors": 4, "prune": "none"}},
    supports=frozenset({"heads", "graph"}),
)
