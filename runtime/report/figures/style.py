"""What the figures of measurements have in common: their colours, a frame of two sides."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from matplotlib.figure import Figure

PALETTE = {
    "blue": "#0072b2",
    "vermillion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "sky": "#56b4e9",
    "orange": "#e69f00",
    "yellow": "#f0e442",
    "grey": "#999999",
    "black": "#000000",
}
"""Colours that people with any colour vision tell apart (Okabe and Ito 2008)."""
OURS, THEIRS = PALETTE["blue"], "#b8b8b8"


def open_frame(panel: Any) -> None:
    """Leave a panel its left and lower side alone."""
    panel.spines[["top", "right"]].set_visible(False)


def content(figure: Figure, kind: str = "png") -> bytes:
    """A figure's file, at the figure's own dpi; kind: `png` or `svg`."""
    file = BytesIO()
    metadata = {"Software": "mclst"} if kind == "png" else {"Creator": "mclst", "Date": None}
    figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()
