"""Training pairs from measured sections: a spot's expression and position, and the tile under it."""

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
from mclst.runtime.tiling.array_pitch import coarse_note, section_resolution
from mclst.runtime.tiling.bounds import check_centers
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.sections.normalize import NORMALIZATIONS, SectionTotals, normalize
from mclst.sections.positions import table_positions
from mclst.sections.section import Section
from mclst.sections.tables.genes import counts_notes, match_genes
from mclst.training.settings import Augmentation


@dataclass(frozen=True)
class TrainingSection:
    """A measured section with its tiles.

    Attributes
    ----------
    name : str
    genes : tuple of str, length G
        In the model's order.
    spot : tuple of str, length n
    tiles : ndarray of uint8, shape (n, S, S, 3)
        RGB, in memory or memory-mapped.
    counts : ndarray of float32, shape (n, G)
        Raw counts.
    array_xy : ndarray of int64, shape (n, 2)
        Array coordinates; 0 if the section has none and the model needs none.
    skipped : tuple of (str, str)
        Measured spots without a tile, with the reason.
    xy_px : ndarray of float64, shape (n, 2), optional
        Level-0 px.
    totals : SectionTotals, optional
        Of all measured spots, with or without a tile; None: of the n spots and G genes.
    notes : tuple of str
        What the user should know of its image and genes.
    """

    name: str
    genes: tuple[str, ...]
    spot: tuple[str, ...]
    tiles: NDArray[np.uint8]
    counts: NDArray[np.float32]
    array_xy: NDArray[np.int64]
    skipped: tuple[tuple[str, str], ...] = ()
    xy_px: NDArray[np.float64] | None = None
    totals: SectionTotals | None = None
    notes: tuple[str, ...] = ()

    def positions(self, kind: str) -> NDArray[np.int64]:
        """Rows int64 [n, 2] of the two position tables; see `table_positions` for `kind`.

        Raises ReferenceDataError if a spot has no such coordinates, or negative ones.
        """
        positions = table_positions(kind, self.array_xy, self.xy_px, len(self.spot))
        if positions is None:
            raise ReferenceDataError(
                f"section {self.name} has no {kind} coordinates for all its spots; choose other --coordinates"
            )
        if len(positions) and positions.min() < 0:
            raise ReferenceDataError(
                f"section {self.name} has an {kind} coordinate below 0; shift its array to start at 0"
                if kind == "array"
                else f"section {self.name} has a {kind} coordinate below 0; correct its coordinates"
            )
        return positions

    def normalized(self, kind: str) -> NDArray[np.float32]:
        """Counts in one of NORMALIZATIONS, float32 [n, G]."""
        return normalize(kind, self.counts, self.totals)


@dataclass(frozen=True)
class Pairs:
    """All N spots of all sections, in section order.

    tiles: uint8 [n, S, S, 3] per section, sharing its memory.
    expression: float32 [N, G], normalized.
    position: int64 [N, 2], rows of the position tables.
    """

    genes: tuple[str, ...]
    tiles: tuple[Tensor, ...]
    expression: Tensor
    position: Tensor

    def __len__(self) -> int:
        return len(self.expression)

    def tiles_of(self, rows: Tensor) -> Tensor:
        """Tiles of `rows` (int64 [b]) as uint8 [b, S, S, 3]."""
        ends = np.cumsum([len(tiles) for tiles in self.tiles])
        section = np.searchsorted(ends, rows.numpy(), side="right")
        return torch.stack(
            [
                self.tiles[s][row - (ends[s - 1] if s else 0)]
                for s, row in zip(section, rows.tolist(), strict=True)
            ]
        )


def read_training_section(
    section: Section,
    genes: Sequence[str],
    tile: Tile,
    *,
    workers: int = 2,
    slide_mpp: float | None = None,
    needs_array: bool = True,
) -> TrainingSection:
    """Read the tiles under a section's spots, and its counts in the model's gene order.

    Spots without pixel coordinates or with an unreadable tile are skipped.

    Parameters
    ----------
    section : Section
    genes : sequence of str
        The model's genes.
    tile : Tile
        Tile size and scale.
    workers : int
        Threads that read tiles.
    slide_mpp : float, optional
        µm per level-0 pixel, if the image does not give it.
    needs_array : bool
        Whether the model uses array coordinates; if not, missing ones become 0.

    Returns
    -------
    TrainingSection

    Raises
    ------
    ReferenceDataError
        If the section lacks an image, pixel or array coordinates, no spot is left, or the image is blank.
    SectionError
        If genes are missing.
    SlideError
        If the image cannot be opened.
    SpotsError
        If a spot is outside the image.
    """
    array_xy = section.array_xy
    if array_xy is None and not needs_array:
        array_xy = np.zeros((len(section), 2), np.int64)
    required = {
        "image": section.image,
        "pixel coordinates": section.xy_px,
        "array coordinates (only --positions none does without)": array_xy,
    }
    for name, value in required.items():
        if value is None:
            raise ReferenceDataError(
                f"section {section.name} ({section.path}) has no {name}, which training needs; add it"
            )
    assert section.image is not None and section.xy_px is not None and array_xy is not None
    counts = match_genes(section, genes)
    located = np.flatnonzero(np.isfinite(section.xy_px).all(axis=1))
    reasons = dict.fromkeys(set(range(len(section))) - set(located.tolist()), "has no pixel coordinates")
    stack = np.zeros((len(section), tile.size_px, tile.size_px, 3), dtype=np.uint8)
    with open_slide(section.image, lazy=True) as slide:
        check_centers(
            section.xy_px,
            slide,
            lambda row: f"section {section.name} ({section.path}): spot {section.spot[row]}",
        )
        shape = TileShape(tile.size_px, tile.mpp, tile.pad)
        centers = section.xy_px[located]
        resolution = section_resolution(slide, section, slide_mpp)
        notes = (
            *(resolution.notes if tile.mpp is not None else ()),  # else tiles are level-0 px whatever µm/px
            coarse_note(section, resolution.mpp, tile.size_px, tile.mpp),
        )
        for batch in Tiles(slide, centers, shape, batch_size=64, workers=workers, slide_mpp=resolution.mpp):
            stack[located[batch.rows]] = batch.tiles
            reasons.update((int(located[row]), reason) for row, reason in batch.failed)
    kept = np.array([row not in reasons for row in range(len(section))], dtype=bool)
    if not kept.any():
        raise ReferenceDataError(
            f"section {section.name} ({section.path}) has no spot with a readable tile; check its image"
        )
    tiles = stack[kept]
    if (tiles.min(axis=(0, 1, 2)) == tiles.max(axis=(0, 1, 2))).all():
        raise ReferenceDataError(
            f"section {section.name}: {section.image.name} has one color under all its {len(tiles)} spots; "
            f"give its slide with --image {section.name}=SLIDE"
        )
    return TrainingSection(
        name=section.name,
        genes=tuple(str(gene) for gene in genes),
        spot=tuple(str(spot) for spot in section.spot[kept]),
        tiles=tiles,
        counts=counts[kept],
        array_xy=array_xy[kept],
        skipped=tuple((str(section.spot[row]), reasons[row]) for row in sorted(reasons)),
        xy_px=section.xy_px[kept],
        totals=SectionTotals.of(section, counts).take(kept),
        notes=tuple(note for note in (*notes, *counts_notes(section, genes)) if note),
    )


def make_pairs(sections: Sequence[TrainingSection], settings: Settings) -> Pairs:
    """Normalize each section's counts and concatenate the sections.

    Raises ReferenceDataError if there are fewer than two spots or coordinates are missing; ValueError if
    genes or numbers of rows differ, or tiles do not have the settings' size.
    """
    if sum(len(section.spot) for section in sections) < 2:
        raise ReferenceDataError("the sections hold fewer than two spots; contrastive training needs more")
    normalization, side = settings.normalization.input, settings.tile.size_px
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization is {normalization!r}; choose one of {', '.join(NORMALIZATIONS)}")
    first = sections[0]
    for section in sections:
        n = len(section.spot)
        if section.genes != first.genes:
            raise ValueError(
                f"sections {first.name} and {section.name} have different genes; give all the same list"
            )
        if section.tiles.shape[1:] != (side, side, 3):
            raise ValueError(
                f"section {section.name} has tiles {section.tiles.shape[1:]} and the settings {side} px; "
                "read the tiles with these settings"
            )
        if (
            section.counts.shape != (n, len(first.genes))
            or section.array_xy.shape != (n, 2)
            or len(section.tiles) != n
        ):
            raise ValueError(
                f"section {section.name} has {n} spots but another number of tiles, counts or coordinates"
            )
    expression = np.concatenate([section.normalized(normalization) for section in sections])
    position = np.concatenate([section.positions(settings.context.positions) for section in sections])
    return Pairs(
        first.genes,
        tuple(torch.from_numpy(np.ascontiguousarray(section.tiles)) for section in sections),
        torch.from_numpy(expression.astype(np.float32, copy=False)),
        torch.from_numpy(position.astype(np.int64)),
    )


class QuarterTurn(torch.nn.Module):
    """Rotate by 0, 90, 180 or 270 degrees with equal probability."""

    def forward(self, tile: Tensor) -> Tensor:
        """uint8 [3, S, S] → the same shape."""
        return torch.rot90(tile, int(torch.randint(4, ())), (1, 2))


def augment(tiles: Tensor, settings: Augmentation) -> Tensor:
    """Augment each tile with torch's global generator: uint8 [b, S, S, 3] → uint8 [b, 3, S, S]."""
    jitter = settings.color_jitter
    transforms: list[torch.nn.Module] = []
    if jitter:
        transforms.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))
    if settings.horizontal_flip:
        transforms.append(v2.RandomHorizontalFlip())
    if settings.vertical_flip:
        transforms.append(v2.RandomVerticalFlip())
    if settings.quarter_turns:
        transforms.append(QuarterTurn())
    if settings.rotation_deg:
        transforms.append(v2.RandomRotation(settings.rotation_deg))
    pixels = tiles.permute(0, 3, 1, 2)
    if not transforms:
        return pixels
    transform = v2.Compose(transforms)
    return torch.stack([transform(tile) for tile in pixels])


def encoder_input(pixels: Tensor, settings: Preprocessing) -> Tensor:
    """Preprocess RGB uint8 [b, 3, S, S] to float32 [b, 3, S, S] as a bundle's graph does."""
    return prepare(
        pixels,
        channels=settings.channels,
        pixel_range=settings.pixel_range,
        mean=settings.mean,
        std=settings.std,
    )
