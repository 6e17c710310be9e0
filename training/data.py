"""Measured sections as training pairs: a spot's expression and place on the array, and the tile under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from mclst.models.pixels import prepare
from mclst.runtime.bundle.manifest import Preprocessing, Settings, Tile
from mclst.runtime.errors import ReferenceDataError
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.sections.normalize import NORMALIZATIONS, normalize
from mclst.sections.positions import table_positions
from mclst.sections.section import Section
from mclst.sections.tables.genes import match_genes
from mclst.training.settings import Augmentation


@dataclass(frozen=True)
class TrainingSection:
    """A measured section ready to train on; n spots.

    genes: str [G], the model's genes in the model's order.
    spot: str [n].
    tiles: uint8 [n, S, S, 3] RGB, in memory or memory-mapped.
    counts: float32 [n, G], raw.
    array_xy: int64 [n, 2] array coordinates, 0 where the section has none and none are wanted.
    left_out: (spot, reason) of measured spots that have no tile.
    xy_px: float64 [n, 2] level-0 px. total: float64 [n], counts over all measured genes. None: not known.
    """

    name: str
    genes: tuple[str, ...]
    spot: tuple[str, ...]
    tiles: NDArray[np.uint8]
    counts: NDArray[np.float32]
    array_xy: NDArray[np.int64]
    left_out: tuple[tuple[str, str], ...] = ()
    xy_px: NDArray[np.float64] | None = None
    total: NDArray[np.float64] | None = None

    def positions(self, kind: str) -> NDArray[np.int64]:
        """Rows int64 [n, 2] of the two position tables; kind as `table_positions` has it.

        Raises ReferenceDataError where a spot has no such place or one below 0.
        """
        found = table_positions(kind, self.array_xy, self.xy_px, len(self.spot))
        if found is None:
            raise ReferenceDataError(
                f"section {self.name} has no {kind} coordinates for all its spots; choose other --coordinates"
            )
        if len(found) and found.min() < 0:
            raise ReferenceDataError(
                f"section {self.name} has an {kind} coordinate below 0; shift its array to start at 0"
                if kind == "array"
                else f"section {self.name} has a {kind} coordinate below 0; correct its places"
            )
        return found

    def normalized(self, kind: str) -> NDArray[np.float32]:
        """Its counts by a formula of NORMALISATIONS, float32 [n, G]."""
        return normalize(kind, self.counts, self.total)


@dataclass(frozen=True)
class Pairs:
    """All spots of all sections, N of them, in section order.

    tiles: a tensor uint8 [n, S, S, 3] per section, sharing memory with it.
    expression: float32 [N, G], normalised. position: int64 [N, 2].
    """

    genes: tuple[str, ...]
    tiles: tuple[Tensor, ...]
    expression: Tensor
    position: Tensor

    def __len__(self) -> int:
        return len(self.expression)

    def tiles_of(self, rows: Tensor) -> Tensor:
        """The tiles of `rows` (int64 [b]) → uint8 [b, S, S, 3]."""
        ends = np.cumsum([len(of_section) for of_section in self.tiles])
        which = np.searchsorted(ends, rows.numpy(), side="right")
        return torch.stack(
            [
                self.tiles[s][row - (ends[s - 1] if s else 0)]
                for s, row in zip(which, rows.tolist(), strict=True)
            ]
        )


def read_training_section(
    section: Section,
    genes: Sequence[str],
    tile: Tile,
    *,
    workers: int = 2,
    slide_mpp: float | None = None,
    placed_on_array: bool = True,
) -> TrainingSection:
    """Read the tiles under a section's spots from its own image, and its counts in the model's gene order.

    slide_mpp: µm per level-0 pixel, where the image does not say. placed_on_array: array coordinates are wanted;
    where not, and the section has none, they are 0.
    Spots without a place or with an unreadable tile are left out and listed in `left_out`.
    Raises ReferenceDataError where the section lacks an image, places or array coordinates, or no spot is left;
    SectionError where genes are missing; SlideError where the image cannot be opened.
    """
    array_xy = section.array_xy
    if array_xy is None and not placed_on_array:
        array_xy = np.zeros((len(section), 2), np.int64)
    needed = {
        "image": section.image,
        "pixel coordinates": section.xy_px,
        "array coordinates (only --positions none does without)": array_xy,
    }
    for what, found in needed.items():
        if found is None:
            raise ReferenceDataError(
                f"section {section.name} ({section.path}) has no {what}, which training needs; add it"
            )
    assert section.image is not None and section.xy_px is not None and array_xy is not None
    counts = match_genes(section, genes)
    placed = np.flatnonzero(np.isfinite(section.xy_px).all(axis=1))
    reasons = dict.fromkeys(set(range(len(section))) - set(placed.tolist()), "has no place on the image")
    stack = np.zeros((len(section), tile.size_px, tile.size_px, 3), dtype=np.uint8)
    with open_slide(section.image) as slide:
        shape = TileShape(tile.size_px, tile.mpp, tile.pad)
        places = section.xy_px[placed]
        for batch in Tiles(slide, places, shape, batch_size=64, workers=workers, slide_mpp=slide_mpp):
            stack[placed[batch.rows]] = batch.tiles
            reasons.update((int(placed[row]), reason) for row, reason in batch.failed)
    kept = np.array([row not in reasons for row in range(len(section))], dtype=bool)
    if not kept.any():
        raise ReferenceDataError(
            f"section {section.name} ({section.path}) has no spot with a readable tile; check its image"
        )
    return TrainingSection(
        name=section.name,
        genes=tuple(str(gene) for gene in genes),
        spot=tuple(str(spot) for spot in section.spot[kept]),
        tiles=stack[kept],
        counts=counts[kept],
        array_xy=array_xy[kept],
        left_out=tuple((str(section.spot[row]), reasons[row]) for row in sorted(reasons)),
        xy_px=section.xy_px[kept],
        total=section.total[kept],
    )


def pair_up(sections: Sequence[TrainingSection], settings: Settings) -> Pairs:
    """Normalise each section's counts and line all sections up.

    Raises ReferenceDataError where there are fewer than two spots, or as `positions` does; ValueError where genes or numbers of rows differ, or tiles are not of the settings' size.
    """
    if sum(len(section.spot) for section in sections) < 2:
        raise ReferenceDataError("the sections hold fewer than two spots; contrastive training needs more")
    normalisation, side = settings.normalisation.input, settings.tile.size_px
    if normalisation not in NORMALIZATIONS:
        raise ValueError(f"normalisation is {normalisation!r}; choose one of {', '.join(NORMALIZATIONS)}")
    first = sections[0]
    for section in sections:
        n = len(section.spot)
        if section.genes != first.genes:
            raise ValueError(
                f"sections {first.name} and {section.name} have different genes; give all the same list"
            )
        if section.tiles.shape[1:] != (side, side, 3):
            raise ValueError(
                f"section {section.name} has tiles {section.tiles.shape[1:]} and the settings say {side} px; read them so"
            )
        if (
            section.counts.shape != (n, len(first.genes))
            or section.array_xy.shape != (n, 2)
            or len(section.tiles) != n
        ):
            raise ValueError(
                f"section {section.name} has {n} spots but tiles, counts or places of another number"
            )
    expression = np.concatenate([section.normalized(normalisation) for section in sections])
    position = np.concatenate([section.positions(settings.context.positions) for section in sections])
    return Pairs(
        first.genes,
        tuple(torch.from_numpy(np.ascontiguousarray(section.tiles)) for section in sections),
        torch.from_numpy(expression.astype(np.float32, copy=False)),
        torch.from_numpy(position.astype(np.int64)),
    )


class QuarterTurn(torch.nn.Module):
    """Turn by 0, 90, 180 or 270 degrees, each as likely."""

    def forward(self, tile: Tensor) -> Tensor:
        """uint8 [3, S, S] → the same shape."""
        return torch.rot90(tile, int(torch.randint(4, ())), (1, 2))


def augment(tiles: Tensor, settings: Augmentation) -> Tensor:
    """Change every tile in its own random way, from torch's global generator: uint8 [b, S, S, 3] → uint8 [b, 3, S, S]."""
    jitter = settings.colour_jitter
    steps: list[torch.nn.Module] = []
    if jitter:
        steps.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))
    if settings.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    if settings.vertical_flip:
        steps.append(v2.RandomVerticalFlip())
    if settings.quarter_turns:
        steps.append(QuarterTurn())
    if settings.rotation_deg:
        steps.append(v2.RandomRotation(settings.rotation_deg))
    pixels = tiles.permute(0, 3, 1, 2)
    if not steps:
        return pixels
    change = v2.Compose(steps)
    return torch.stack([change(tile) for tile in pixels])


def encoder_input(pixels: Tensor, settings: Preprocessing) -> Tensor:
    """RGB uint8 [b, 3, S, S] → float32 [b, 3, S, S], channel order, range, mean and std as a bundle's graph has them."""
    return prepare(
        pixels,
        channels=settings.channels,
        pixel_range=settings.pixel_range,
        mean=settings.mean,
        std=settings.std,
    )
