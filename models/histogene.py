"""HisToGene (Pang et al. 2021): a Vision Transformer over all spots of a slide.

State-dict compatible with the published class `HisToGene`.
"""

from __future__ import annotations

from torch import Tensor, nn

from mclst.models.slide_transformer import PUBLISHED_SETTINGS, SlideModel, ViT, attention_kwargs, read_traits
from mclst.models.system import State, System, Traits, count_blocks
from mclst.models.transformer import SlideTransformer


class HisToGene(SlideModel):
    """A linear layer per tile, learned positions, a Transformer over the slide, a linear head."""

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
        super().__init__(positions, width)
        self.patch_embedding = nn.Linear(3 * tile_px**2, width)
        self.vit = ViT(SlideTransformer(width, heads, head_dim, hidden, depth))
        self.gene_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, genes))

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, X, Y], x-major, 0..255 → features float32 [N, width]."""
        # The published flattening: x varies slowest, the channel fastest.
        out: Tensor = self.patch_embedding(tiles.permute(0, 2, 3, 1).flatten(1))
        return out

    def predict_expression(self, features: Tensor, position: Tensor) -> Tensor:
        """All spots of a slide: features float32 [N, width], position int64 [N, 2] (x, y) → [N, genes]."""
        x, y = self.embed_positions(position)
        out: Tensor = self.gene_head(self.vit(features + x + y))
        return out


def _traits(state: State, encoder: str | None) -> Traits:
    width, pixels = state["patch_embedding.weight"].shape
    tile_px = round((pixels / 3) ** 0.5)
    if 3 * tile_px**2 != pixels:
        raise ValueError(f"its patch embedding takes {pixels} values, which are no square RGB tile")
    layers = "vit.transformer.layers."
    return read_traits(
        state,
        encoder="linear patch embedding",
        genes="gene_head.1.weight",
        width=width,
        qkv=f"{layers}0.0.fn.to_qkv.weight",
        depth=count_blocks(state, layers),
        tile_px=tile_px,
        hidden=len(state[f"{layers}0.1.fn.net.0.weight"]),
    )


def _build(traits: Traits, heads: int) -> HisToGene:
    shape = {"width": traits.width, "depth": traits.depth, **traits.extra}
    return HisToGene(traits.genes, **shape, **attention_kwargs(traits, heads))


SYSTEM = System(
    name="histogene",
    title="HisToGene",
    kind="slide",
    claims=lambda state: (
        "patch_embedding.weight" in state
        and state["patch_embedding.weight"].ndim == 2
        and any(name.startswith("vit.transformer.layers.") for name in state)
    ),
    traits=_traits,
    build=_build,
    settings=PUBLISHED_SETTINGS,
    supports=frozenset({"heads"}),
)
