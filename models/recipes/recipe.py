"""What must be known of an image encoder before its features mean anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Builder = Literal["timm", "torchvision", "attention-pooled", "ctranspath"]
"""timm and torchvision by name; a transformer of timm under an attention pooler; a Swin with another stem."""
Pooling = Literal["network", "cls", "mean", "cls+mean"]
"""Of the last tokens; "mean" leaves the class token and registers out; "network": the network's own."""
Interpolation = Literal["bilinear", "bicubic"]
Positions = Literal["fixed", "bicubic", "bicubic-antialias", "bicubic-dino"]
"""How position embeddings of another grid are resampled; "fixed": they are refused.

"bicubic-dino" is DINO's, which scales by (grid + 0.1) / old grid.
"""


@dataclass(frozen=True)
class Recipe:
    """One image encoder: network, pooling, tiles, weights and license.

    Parameters
    ----------
    name : str
        As `--encoder` takes it.
    title : str
        Name in tables and messages.
    family : str
        Heading of its table in the docs.
    builder : {"timm", "torchvision", "attention-pooled", "ctranspath"}
    architecture : str
        Name in timm or torchvision; of a pooled network its transformer's.
    width : int
        Features per tile.
    parameters : int
        Of the network without a classifier.
    mean, std : tuple of float
        Per RGB channel of pixels scaled to 0 … 1.
    arguments : mapping
        Of the constructor. Layers are named: `"mlp_layer": "SwiGLUPacked"`. Those of the pooler begin with
        `pool_`.
    pooling : {"network", "cls", "mean", "cls+mean"}
    tile_px : int
        Side of the network's input, px.
    resize_px : int
        Side that a tile is resized to before its center of `tile_px` is cut out, px.
    interpolation : {"bilinear", "bicubic"}
        Of that resize, antialiased.
    fov_um : float or None
        Side of the tissue that a tile shows before the crop, µm; None where nothing prescribes it.
    positions : {"fixed", "bicubic", "bicubic-antialias", "bicubic-dino"}
        What happens to position embeddings of another grid.
    license : str
        SPDX identifier where there is one.
    redistributable : bool
        Whether the license lets a bundle that holds these weights be published.
    gated : bool
        Whether the source asks for registration.
    source : str
        Where the weights are from.
    note : str
        What differs between sources, or is inferred.
    """

    name: str
    title: str
    family: str
    builder: Builder
    architecture: str
    width: int
    parameters: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pooling: Pooling = "network"
    tile_px: int = 224
    resize_px: int = 0
    interpolation: Interpolation = "bilinear"
    fov_um: float | None = None
    positions: Positions = "fixed"
    license: str = ""
    redistributable: bool = False
    gated: bool = False
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if not self.resize_px:
            object.__setattr__(self, "resize_px", self.tile_px)

    def record(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Recipe:
        """Return the recipe of `record`; raises ValueError if it is none."""
        try:
            mean, std = (tuple(map(float, record[name])) for name in ("mean", "std"))
            return cls(**{**record, "mean": mean, "std": std})
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"its recipe is damaged ({error})") from error

    @property
    def mpp(self) -> float | None:
        """µm per pixel of the network's input; None where nothing prescribes it."""
        return self.mpp_of(self.tile_px)

    def mpp_of(self, side: int) -> float | None:
        """µm per pixel of tiles of `side` px: the input itself, or what is resized and cropped to it."""
        before_crop = self.resize_px if side == self.tile_px else side
        return None if self.fov_um is None else self.fov_um / before_crop
