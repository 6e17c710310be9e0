"""Fields of view of one tile: its center cut out at several sizes, each brought to a network's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mclst.models.recipes.recipe import Interpolation
from mclst.models.recipes.resize import resize_matrix


def view_px(tile_px: int, view: float) -> int:
    """Side of a field of view in tile pixels; view: 1 is the network's own field of view of `tile_px`."""
    return max(1, round(tile_px * view))


class Views(nn.Module):
    """Several fields of view of each tile, as one batch for an encoder.

    A resize becomes two products with constant matrices, which every ONNX runtime has; antialiased Resize is
    missing in most.

    Parameters
    ----------
    tile_px : int
        Side of the encoder's input.
    views : sequence of float
        Sides of the fields of view, as multiples of the encoder's own.
    interpolation : {"bilinear", "bicubic"}
    """

    def __init__(self, tile_px: int, views: Sequence[float], interpolation: Interpolation) -> None:
        super().__init__()
        self.sides = [view_px(tile_px, view) for view in views]
        self.tile_px = tile_px
        for side in {*self.sides} - {tile_px}:
            matrix = resize_matrix(side, tile_px, interpolation=interpolation)
            self.register_buffer(f"resize_{side}", matrix, persistent=False)

    def encode(self, encoder: nn.Module, tiles: Tensor) -> Tensor:
        """Encode all views and join their features.

        Parameters
        ----------
        encoder : nn.Module
            float32 [N, 3, tile_px, tile_px] → [N, width].
        tiles : float32 [N, 3, S, S]
            Preprocessed; S is the side of the largest view.

        Returns
        -------
        float32 [N, views x width]
            In the order of the views.
        """
        features: Tensor = encoder(torch.cat([self._view(tiles, side) for side in self.sides]))
        if len(self.sides) == 1:
            return features
        by_view = torch.unflatten(features, 0, (len(self.sides), -1))
        return torch.cat(list(by_view.unbind(0)), 1)

    def _view(self, tiles: Tensor, side: int) -> Tensor:
        # The corner is where a tile of that size around the same spot would have it.
        start = tiles.shape[-1] // 2 - side // 2
        image = tiles[:, :, start : start + side, start : start + side]
        if side == self.tile_px:
            return image
        matrix: Tensor = getattr(self, f"resize_{side}")
        return torch.matmul(matrix, torch.matmul(image, matrix.T))
