"""A figure as the content of a file."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def content(figure: Figure, kind: str = "png") -> bytes:
    """A figure's file, at the figure's own dpi; kind: `png` or `svg`."""
    file = BytesIO()
    metadata = {"Software": "mclst"} if kind == "png" else {"Creator": "mclst", "Date": None}
    figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()
