"""Antialiased resizing as two matrix products, which every ONNX provider computes alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mclst.models.recipes.recipe import Interpolation


def resize_matrix(
    size: int, resized: int, cropped: int | None = None, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Matrix of torch's antialiased resize along one axis, and of a central crop after it.

    Parameters
    ----------
    size : int
        Values before.
    resized : int
        Values after resizing.
    cropped : int, optional
        Values that are kept of their center; all by default.
    interpolation : {"bilinear", "bicubic"}

    Returns
    -------
    Tensor
        float32 [cropped, size]; its rows sum to 1.
    """
    identity = torch.eye(size, dtype=torch.float64, device="cpu").view(1, 1, size, size)
    # The second axis keeps its size, so the resize of the identity is the matrix itself.
    matrix = nn.functional.interpolate(
        identity, size=(resized, size), mode=interpolation, align_corners=False, antialias=True
    )[0, 0]
    kept = resized if cropped is None else cropped
    # As torchvision's CenterCrop rounds.
    first = round((resized - kept) / 2)
    return matrix[first : first + kept].float()


class Resize(nn.Module):
    """Resize square tiles and cut out their center.

    Parameters
    ----------
    size, resized, cropped : int
        Side of a tile, px: as it comes, after resizing, after the crop.
    interpolation : {"bilinear", "bicubic"}
    """

    def __init__(self, size: int, resized: int, cropped: int, interpolation: Interpolation) -> None:
        super().__init__()
        self.matrix: Tensor
        self.register_buffer("matrix", resize_matrix(size, resized, cropped, interpolation), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, size, size] → float32 [N, 3, cropped, cropped]."""
        return torch.matmul(torch.matmul(self.matrix, tiles), self.matrix.T)


def fit_tiles(size: int, resized: int, cropped: int, interpolation: Interpolation) -> nn.Module:
    """`Resize`, or nothing where tiles have their size already."""
    if size == resized == cropped:
        return nn.Identity()
    return Resize(size, resized, cropped, interpolation)
