"""mclSTExp (Min et al. 2024): tiles and measured spots into one embedding space.

State-dict compatible with the class `mclSTExp_Attention` of the published code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mclst.models.encoders import ImageEncoder


class Attention(nn.Module):
    """Multi-head self-attention without qkv bias; heads x head_dim need not equal the width."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, width), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """float32 [B, S, width] → the same shape; every spot of a sentence attends to all of it."""
        batch, spots, _ = x.shape
        q, k, v = self.to_qkv(x).view(batch, spots, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.to_out(mixed.transpose(1, 2).reshape(batch, spots, -1))
        return out


class FeedForward(nn.Module):
    """Linear, GELU, Linear at constant width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Dropout(0.0), nn.Linear(width, width), nn.Dropout(0.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        """float32 [..., width] → the same shape."""
        out: Tensor = self.net(x)
        return out


class PreNorm(nn.Module):
    """Layer normalisation, then `fn`."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """float32 [..., width] → the same shape."""
        out: Tensor = self.fn(self.norm(x))
        return out


class Block(nn.Module):
    """One Transformer block of the spot encoder, pre-norm with residuals."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.attn = PreNorm(width, Attention(width, heads, head_dim))
        self.ff = PreNorm(width, FeedForward(width))

    def forward(self, x: Tensor) -> Tensor:
        """float32 [B, S, width] → the same shape."""
        x = self.attn(x) + x
        out: Tensor = self.ff(x) + x
        return out


class ProjectionHead(nn.Module):
    """LN(p + Linear(GELU(p))) with p = Linear(x): CLIP's projection as BLEEP and mclSTExp use it."""

    def __init__(self, width: int, projection_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.projection = nn.Linear(width, projection_dim)
        self.gelu = nn.GELU()
        self.fc = nn.Linear(projection_dim, projection_dim)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(projection_dim)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [..., width] → float32 [..., projection_dim]."""
        projected: Tensor = self.projection(x)
        out: Tensor = self.layer_norm(self.dropout(self.fc(self.gelu(projected))) + projected)
        return out


def position_table(rows: int, genes: int) -> nn.Embedding:
    """A table of `rows` positions; random as torch's Embedding is, and empty where `rows` is 0."""
    if rows:
        return nn.Embedding(rows, genes)
    return nn.Embedding(0, genes, _weight=torch.empty(0, genes))


class MclSTExp(nn.Module):
    """The two encoders and their projections.

    genes: width of the spot encoder. positions: rows of the two position tables (65,536 as published; fewer where
    only some rows are needed; 0 for a network that knows no positions). heads, head_dim, depth: of the spot
    Transformer.
    """

    def __init__(
        self,
        encoder: str,
        genes: int,
        *,
        projection_dim: int = 256,
        heads: int = 8,
        head_dim: int = 64,
        depth: int = 2,
        positions: int = 65536,
        dropout: float = 0.0,
        vit_norm: str = "fc_norm",
    ) -> None:
        super().__init__()
        self.x_embed, self.y_embed = (position_table(positions, genes) for _ in range(2))
        self.image_encoder = ImageEncoder(encoder, vit_norm=vit_norm)
        self.spot_encoder = nn.Sequential(*[Block(genes, heads, head_dim) for _ in range(depth)])
        self.image_projection = ProjectionHead(self.image_encoder.width, projection_dim, dropout)
        self.spot_projection = ProjectionHead(genes, projection_dim, dropout)

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, H, W], preprocessed → embeddings float32 [N, projection_dim]."""
        out: Tensor = self.image_projection(self.image_encoder(tiles))
        return out

    def encode_spots(self, expression: Tensor, position: Tensor) -> Tensor:
        """One sentence: expression float32 [S, genes], position int64 [S, 2] (table rows) → float32 [S, projection_dim].

        A network with empty position tables leaves `position` aside.
        """
        sentence = expression
        if len(self.x_embed.weight):
            sentence = sentence + self.x_embed(position[:, 0]) + self.y_embed(position[:, 1])
        out: Tensor = self.spot_projection(self.spot_encoder(sentence.unsqueeze(0)).squeeze(0))
        return out

    def contrastive_logits(
        self, tiles: Tensor, expression: Tensor, position: Tensor, temperature: float
    ) -> Tensor:
        """Spot x tile similarities [N, N] of N pairs, un-normalised dot products over `temperature`."""
        spots, images = self.encode_spots(expression, position), self.encode_tiles(tiles)
        return torch.matmul(spots, images.T) / temperature
