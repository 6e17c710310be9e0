"""mclSTExp (Min et al. 2024): tiles and measured spots in one embedding space.

State-dict compatible with the class `mclSTExp_Attention` of the published code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mclst.models.encoders import ImageEncoder
from mclst.models.recipes.recipe import Recipe
from mclst.models.system import State, System, Traits, count_blocks
from mclst.models.transformer import Attention, Block


class ProjectionHead(nn.Module):
    """LN(p + Linear(GELU(p))) with p = Linear(x), CLIP's projection head in BLEEP and mclSTExp."""

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
    """Embedding table of `rows` positions with random weights; may be empty."""
    if rows:
        return nn.Embedding(rows, genes)
    return nn.Embedding(0, genes, _weight=torch.empty(0, genes))


class MclSTExp(nn.Module):
    """The two encoders and their projections.

    Parameters
    ----------
    encoder : str or Recipe
        Image network, see `ImageEncoder`.
    genes : int
        Width of the spot encoder.
    heads, head_dim, depth : int
        Of the spot Transformer.
    positions : int
        Rows of the two position tables: 65,536 as published, 0 for a network without positions.
    """

    def __init__(
        self,
        encoder: str | Recipe,
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
        self.spot_encoder = nn.Sequential(
            *[Block(genes, Attention(genes, heads, head_dim), genes) for _ in range(depth)]
        )
        self.image_projection = ProjectionHead(self.image_encoder.width, projection_dim, dropout)
        self.spot_projection = ProjectionHead(genes, projection_dim, dropout)

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, H, W], preprocessed → embeddings float32 [N, projection_dim]."""
        out: Tensor = self.image_projection(self.image_encoder(tiles))
        return out

    def encode_spots(self, expression: Tensor, position: Tensor) -> Tensor:
        """One sentence: expression float32 [S, genes], table rows int64 [S, 2] → float32 [S, projection_dim].

        `position` is ignored if the position tables are empty.
        """
        sentence = expression
        if len(self.x_embed.weight):
            sentence = sentence + self.x_embed(position[:, 0]) + self.y_embed(position[:, 1])
        out: Tensor = self.spot_projection(self.spot_encoder(sentence.unsqueeze(0)).squeeze(0))
        return out


def _encoder(state: State) -> str:
    prefix = "image_encoder.model."
    if prefix + "0.conv0.weight" in state:
        return "densenet121"
    if prefix + "cls_token" in state:
        return "vit_base_patch32_224"
    by_depth = {2: "resnet18", 6: "resnet50", 23: "resnet101"}
    name = by_depth.get(count_blocks(state, prefix + "6.")) if prefix + "0.weight" in state else None
    if name is None:
        raise ValueError(
            "its image encoder is none of DenseNet-121, ResNet-18/50/101 and ViT-B/32, which can be exported"
        )
    return name


def _traits(state: State, encoder: str | Recipe | None) -> Traits:
    width, genes = state["spot_projection.projection.weight"].shape
    return Traits(
        encoder=encoder.name if isinstance(encoder, Recipe) else encoder or _encoder(state),
        genes=genes,
        width=width,
        depth=count_blocks(state, "spot_encoder."),
        attention_width=state["spot_encoder.0.attn.fn.to_qkv.weight"].shape[0] // 3,
        positions=min(
            len(state[name]) if name in state else 0 for name in ("x_embed.weight", "y_embed.weight")
        ),
        extra={
            "vit_norm": "norm" if "image_encoder.model.norm.weight" in state else "fc_norm",
            "recipe": encoder if isinstance(encoder, Recipe) else None,
        },
    )


def _build(traits: Traits, heads: int) -> MclSTExp:
    return MclSTExp(
        traits.extra["recipe"] or traits.encoder,
        traits.genes,
        projection_dim=traits.width,
        heads=heads,
        head_dim=traits.attention_width // heads,
        depth=traits.depth,
        positions=1,
        vit_norm=traits.extra["vit_norm"],
    )


SYSTEM = System(
    name="mclstexp",
    title="mclSTExp",
    kind="retrieval",
    claims=lambda state: (
        "spot_projection.projection.weight" in state
        and any(name.startswith("spot_encoder.") for name in state)
    ),
    traits=_traits,
    build=_build,
    supports=frozenset({"heads", "context"}),
    cut_positions=True,
)
