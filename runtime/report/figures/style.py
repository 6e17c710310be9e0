"""The common style of figures by matplotlib: colors, spines, file output."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from mclst.runtime.report.figures.colors import EXPRESSION
from mclst.runtime.report.figures.png import encode_png

PALETTE = {
    "blue": "#0072b2",
    "vermillion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "sky": "#56b4e9",
    "orange": "#e69f00",
    "yellow": "#f0e442",
    "gray": "#999999",
    "black": "#000000",
}
"""Safe for every type of color vision (Okabe and Ito 2008)."""
OURS, THEIRS = PALETTE["blue"], "#b8b8b8"
COLORMAP = ListedColormap(EXPRESSION / 255)


def hide_spines(axes: Any) -> None:
    """Hide the top and right spines."""
    axes.spines[["top", "right"]].set_visible(False)


def figure_bytes(figure: Figure, kind: str = "png", dpi: float | str = "figure") -> bytes:
    """Render a figure to the content of a file.

    Parameters
    ----------
    figure : Figure
    kind : str
        png, pdf or svg.
    dpi : float or "figure"
        Dots per inch of a PNG, and of images in a PDF or SVG.
    """
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": "mclst"},
        "pdf": {"Creator": "mclst", "CreationDate": None},
        "svg": {"Creator": "mclst", "Date": None},
    }
    if kind == "png":
        canvas: Any = FigureCanvasAgg(figure)
        if dpi != "figure":
            figure.dpi = float(dpi)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())
        return encode_png(pixels[..., :3], dpi=figure.dpi, text=metadata["png"])
    content = BytesIO()
    figure.savefig(content, format=kind, dpi=dpi, metadata=metadata[kind])
    return content.getvalue()
