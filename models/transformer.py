"""Pre-norm Transformer blocks under the key names that all published systems share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

QUERY_BLOCK = 128
"""Queries attended at once: for 16 heads and 30,000 spots, 246 MB of float32 scores instead of 58 GB."""


class Attention(nn.Module):
    """Multi-head self-attention without qkv bias; heads x head_dim may differ from the width."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, width), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """float32 [B, S, width] → the same shape; each spot attends to its whole sentence."""
        batch, spots, _ = x.shape
        q, k, v = self.to_qkv(x).view(batch, spots, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.to_out(mixed.transpose(1, 2).reshape(batch, spots, -1))
        return out


# A single operator, so that the exporter can write it as a loop and never materializes all scores.
@torch.library.custom_op("mclst::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Exact softmax(q kᵀ) v per head in blocks of queries; all [heads, N, head_dim], q already scaled."""
    blocks = torch.split(q, QUERY_BLOCK, dim=1)
    return torch.cat([torch.softmax(block @ k.transpose(1, 2), dim=-1) @ v for block in blocks], dim=1)


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.empty_like(q)


class SlideAttention(Attention):
    """The same attention over all spots of a slide, in memory linear in N."""

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, width] → the same shape; each spot attends to all."""
        q, k, v = (
            torch.unflatten(part, 1, (self.heads, -1)).transpose(0, 1)
            for part in self.to_qkv(x).chunk(3, dim=1)
        )
        mixed = attend(q * q.shape[-1] ** -0.5, k, v)
        out: Tensor = self.to_out(mixed.transpose(0, 1).flatten(1))
        return out


class FeedForward(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.0), nn.Linear(hidden, width), nn.Dropout(0.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        """float32 [..., width] → the same shape."""
        out: Tensor = self.net(x)
        return out


class PreNorm(nn.Module):
    """Layer normalization, then `fn`."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """float32 [..., width] → the same shape."""
        out: Tensor = self.fn(self.norm(x))
        return out


class Block(nn.Module):
    """A pre-norm block with residuals, its halves named `attn` and `ff`."""

    def __init__(self, width: int, attention: nn.Module, hidden: int) -> None:
        super().__init__()
        self.attn = PreNorm(width, attention)
        self.ff = PreNorm(width, FeedForward(width, hidden))

    def forward(self, x: Tensor) -> Tensor:
        """float32 [..., width] → the same shape."""
        x = self.attn(x) + x
        out: Tensor = self.ff(x) + x
        return out


class SlideTransformer(nn.Module):
    """Blocks over all spots of a slide, their halves numbered `layers.{i}.0` and `layers.{i}.1`."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PreNorm(width, SlideAttention(width, heads, head_dim)),
                    PreNorm(width, FeedForward(width, hidden)),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, width] → the same shape."""
        for halves in self.layers:
            for half in halves:  # type: ignore[attr-defined]
                x = half(x) + x
        return x
