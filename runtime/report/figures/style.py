"""The common style of figures: colors, spines, file output."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mclst.runtime.report.figures.png import encode_png

INK, MUTED = "#1c1c1e", "#6e6e73"
FORMATS = ("png", "pdf", "svg")
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
COLORMAP = ListedColormap(matplotlib.colormaps["magma_r"](np.linspace(0.04, 0.92, 256)))
"""Expression: darker is more; both ends differ from the white paper and from black."""


def color_limits(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return the 1st and 99th percentile of values [n] without NaN; (0, 1) if there are none."""
    if not len(values):
        return 0.0, 1.0
    low, high = np.percentile(values.astype(np.float64), [1, 99])
    return float(low), float(high)


def hide_spines(axes: Any) -> None:
    """Hide the top and right spines."""
    axes.spines[["top", "right"]].set_visible(False)


def figure_bytes(figure: Figure, kind: str = "png", dpi: float | str = "figure") -> bytes:
    """Render a figure to the content of a file.

    Parameters
    ----------
    figure : Figure
    kind : str
        One of `FORMATS`.
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
