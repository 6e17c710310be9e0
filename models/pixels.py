"""Pixels as read from a slide → what an image network was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def prepare(
    pixels: Tensor, *, channels: str, pixel_range: str, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """RGB [N, 3, H, W] of 0 … 255, any dtype → float32 of the same shape.

    In this order: channels "bgr" reverses them, pixel_range "0-1" divides by 255, mean is subtracted and std divided
    by, per channel. A bundle's graph does the same in ONNX.
    """
    values = pixels.float()
    if channels == "bgr":
        values = values.flip(1)
    if pixel_range == "0-1":
        values = values / 255
    shift, scale = (values.new_tensor(list(of_channel)).view(1, 3, 1, 1) for of_channel in (mean, std))
    return (values - shift) / scale
