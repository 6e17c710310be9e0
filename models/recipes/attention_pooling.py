"""Transformers whose tokens one learned query attends to, as CONCH and CoCa pool them.

Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models", TMLR 2022, section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class AttentionPooling(nn.Module):
    """Multi-head attention of one learned query over all tokens; both are normalized first.

    Parameters
    ----------
    width, context : int
        Of the query and of the tokens.
    heads : int
    bias : bool
        Of the four projections.
    """

    def __init__(self, width: int, context: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(1, width))
        self.ln_q, self.ln_k = nn.LayerNorm(width), nn.LayerNorm(context)
        self.q = nn.Linear(width, width, bias=bias)
        self.k, self.v = nn.Linear(context, width, bias=bias), nn.Linear(context, width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """float32 [N, T, context] → float32 [N, width]."""
        tokens = self.ln_k(tokens)
        # [1, heads, 1, head_dim] is the same for every tile, so attention broadcasts it.
        query = torch.unflatten(self.q(self.ln_q(self.query)), 1, (self.heads, -1)).view(1, self.heads, 1, -1)
        keys, values = (
            torch.unflatten(part(tokens), 2, (self.heads, -1)).transpose(1, 2) for part in (self.k, self.v)
        )
        scores = query @ keys.transpose(2, 3) * query.shape[-1] ** -0.5
        mixed = torch.softmax(scores, dim=-1) @ values
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(1))
        return out


class AttentionPooled(nn.Module):
    """A transformer, an `AttentionPooling`, a normalization and perhaps a projection without bias.

    Parameters
    ----------
    trunk : nn.Module
        Its `forward_features` gives tokens [N, T, C].
    width : int
        Features per tile.
    heads : int
    bias, project : bool
        Whether the pooler's projections have biases, and whether another projection follows.
    """

    def __init__(self, trunk: Any, width: int, heads: int, *, bias: bool, project: bool) -> None:
        super().__init__()
        self.trunk: Any = trunk
        self.pool = AttentionPooling(width, trunk.num_features, heads, bias=bias)
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, width, bias=False) if project else nn.Identity()

    def forward(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, H, W] → float32 [N, width]."""
        out: Tensor = self.proj(self.norm(self.pool(self.trunk.forward_features(tiles))))
        return out
