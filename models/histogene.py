"""HisToGene (Pang et al. 2021): a Vision Transformer over all spots of a slide.

State-dict compatible with the published class `HisToGene`.
"""

from __future__ import annotations

from torch import Tensor, nn

from mclst.models.system import State, System, Traits, count_blocks
from mclst.models.transformer import Layers


class ViT(nn.Module):
    """The Transformer under the name `transformer`."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.transformer = Layers(width, heads, head_dim, hidden, depth)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, width] → the same shape."""
        out: Tensor = self.transformer(x)
        return out


class HisToGene(nn.Module):
    """One linear layer per tile, learned positions, a Transformer over the slide, a linear head."""

    def __init__(
        self,
        genes: int,
        *,
        tile_px: int = 112,
        width: int = 1024,
        heads: int = 16,
        head_dim: int = 64,
        hidden: int = 2048,
        depth: int = 8,
        positions: int = 64,
    ) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(3 * tile_px**2, width)
        self.x_embed = nn.Embedding(positions, width)
        self.y_embed = nn.Embedding(positions, width)
        self.vit = ViT(width, heads, head_dim, hidden, depth)
        self.gene_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, genes))

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, X, Y], x-major, 0..255 → features float32 [N, width].

        The published order of a flattened tile: x slowest, the channel fastest.
        """
        out: Tensor = self.patch_embedding(tiles.permute(0, 2, 3, 1).flatten(1))
        return out

    def express(self, features: Tensor, position: Tensor) -> Tensor:
        """All spots of a slide: features float32 [N, width], position int64 [N, 2] (x, y) → float32 [N, genes]."""
        x = features + self.x_embed(position[:, 0]) + self.y_embed(position[:, 1])
        out: Tensor = self.gene_head(self.vit(x))
        return out


def _traits(state: State, encoder: str | None) -> Traits:
    width, pixels = state["patch_embedding.weight"].shape
    tile_px = round((pixels / 3) ** 0.5)
    if 3 * tile_px**2 != pixels:
        raise ValueError(f"its patch embedding takes {pixels} values, which are no square RGB tile")
    layers = "vit.transformer.layers."
    return Traits(
        encoder="linear patch embedding",
        genes=len(state["gene_head.1.weight"]),
        width=width,
        depth=count_blocks(state, layers),
        attention_width=state[f"{layers}0.0.fn.to_qkv.weight"].shape[0] // 3,
        positions=len(state["x_embed.weight"]),
        others={"tile_px": tile_px, "hidden": len(state[f"{layers}0.1.fn.net.0.weight"])},
    )


def _build(traits: Traits, heads: int) -> HisToGene:
    return HisToGene(
        traits.genes,
        tile_px=traits.others["tile_px"],
        width=traits.width,
        heads=heads,
        head_dim=traits.attention_width // heads,
        hidden=traits.others["hidden"],
        depth=traits.depth,
        positions=traits.positions,
    )


SYSTEM = System(
    name="histogene",
    title="HisToGene",
    kind="sequence",
    claims=lambda state: (
        "patch_embedding.weight" in state
        and state["patch_embedding.weight"].ndim == 2
        and any(name.startswith("vit.transformer.layers.") for name in state)
    ),
    traits=_traits,
    build=_build,
    settings={
        "heads": 16,
        "tile": {"size_px": 112},
        "preprocessing": {"pixel_range": "0-255", "axes": "x-major"},
        "normalisation": {"input": "none", "expression": "spot-wise"},
    },
    applies=frozenset({"heads"}),
)
