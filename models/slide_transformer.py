"""Shared by the slide-level systems: position tables, the name `vit`, traits and settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from mclst.models.system import State, Traits

PUBLISHED_SETTINGS: Mapping[str, Any] = {
    "heads": 16,
    "tile": {"size_px": 112},
    "preprocessing": {"pixel_range": "0-255", "axes": "x-major"},
    "normalization": {"input": "none", "expression": "spot-wise"},
}
"""Of HisToGene, Hist2ST and THItoGene, whose pixels are [x, y, channel], 0 … 255."""

Inner = TypeVar("Inner", bound=nn.Module)


class ViT(nn.Module, Generic[Inner]):
    """Wrapper that puts layers under the published name `vit.transformer`."""

    transformer: Inner

    def __init__(self, transformer: Inner) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, width] → the same shape."""
        out: Tensor = self.transformer(x)
        return out


class SlideModel(nn.Module):
    """Base class with two learned tables, `positions` array coordinates by `width`."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.x_embed = nn.Embedding(positions, width)
        self.y_embed = nn.Embedding(positions, width)

    def embed_positions(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Array coordinates int64 [N, 2] (x, y) → embeddings of x and of y, float32 [N, width] each."""
        return self.x_embed(position[:, 0]), self.y_embed(position[:, 1])


def read_traits(
    state: State, *, encoder: str, genes: str, width: int, qkv: str, depth: int, **extra: Any
) -> Traits:
    """Traits of a slide system.

    Parameters
    ----------
    genes : str
        Key of the last Linear's weight.
    qkv : str
        Key of the first attention's qkv weight.
    """
    return Traits(
        encoder=encoder,
        genes=len(state[genes]),
        width=width,
        depth=depth,
        attention_width=state[qkv].shape[0] // 3,
        positions=len(state["x_embed.weight"]),
        extra=extra,
    )


def attention_kwargs(traits: Traits, heads: int) -> dict[str, Any]:
    """Keyword arguments of a network that depend on its traits and the number of heads."""
    return {"heads": heads, "head_dim": traits.attention_width // heads, "positions": traits.positions}
