"""Pixel values as an image network was trained on them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def prepare(
    pixels: Tensor, *, channels: str, pixel_range: str, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Normalize slide pixels as the graph of a bundle does.

    Parameters
    ----------
    pixels : Tensor
        RGB [N, 3, H, W], 0 … 255, any dtype.
    channels : {"rgb", "bgr"}
        Channel order of the result.
    pixel_range : {"0-1", "0-255"}
        "0-1" divides by 255.
    mean, std : sequence of float
        Per channel, applied last.

    Returns
    -------
    Tensor
        float32, same shape.
    """
    values = pixels.float()
    if channels == "bgr":
        values = values.flip(1)
    if pixel_range == "0-1":
        values = values / 255
    shift, scale = (values.new_tensor(list(per_channel)).view(1, 3, 1, 1) for per_channel in (mean, std))
    return (values - shift) / scale
