"""What the systems that see a whole slide at once share: position tables, the name `vit`, traits and settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from mclst.models.system import State, Traits

PUBLISHED: Mapping[str, Any] = {
    "heads": 16,
    "tile": {"size_px": 112},
    "preprocessing": {"pixel_range": "0-255", "axes": "x-major"},
    "normalisation": {"input": "none", "expression": "spot-wise"},
}
"""The settings that HisToGene, Hist2ST and THItoGene were published with; pixels are [x, y, channel], 0 … 255."""


Inner = TypeVar("Inner", bound=nn.Module)


class ViT(nn.Module, Generic[Inner]):
    """Layers over all spots under the published name `vit.transformer`."""

    transformer: Inner

    def __init__(self, transformer: Inner) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, width] → the same shape."""
        out: Tensor = self.transformer(x)
        return out


class OverSlide(nn.Module):
    """Base of these networks: two learned tables of `positions` array coordinates, `width` wide."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.x_embed = nn.Embedding(positions, width)
        self.y_embed = nn.Embedding(positions, width)

    def places(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Array coordinates int64 [N, 2] (x, y) → their two embeddings, float32 [N, width] each."""
        return self.x_embed(position[:, 0]), self.y_embed(position[:, 1])


def read_traits(
    state: State, *, encoder: str, genes: str, width: int, qkv: str, depth: int, **others: Any
) -> Traits:
    """Traits of a claimed state dict; genes, qkv: names of the last Linear's weight and of the first attention's."""
    return Traits(
        encoder=encoder,
        genes=len(state[genes]),
        width=width,
        depth=depth,
        attention_width=state[qkv].shape[0] // 3,
        positions=len(state["x_embed.weight"]),
        others=others,
    )


def attention_of(traits: Traits, heads: int) -> dict[str, Any]:
    """The arguments of a network that its traits and its heads give."""
    return {"heads": heads, "head_dim": traits.attention_width // heads, "positions": traits.positions}
