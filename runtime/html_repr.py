"""HTML representation of slides, bundles and runs in notebooks: a small table and a picture."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

PICTURE_PX = 1000


def html_table(title: str, rows: Iterable[tuple[str, Any]], picture: Path | None = None) -> str:
    """A table of names and values without those that are None, then the picture if its file still exists."""
    lines = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(format_value(value))}</td></tr>'
        for name, value in rows
        if value is not None
    )
    return f"<table><caption>{escape(title)}</caption>{lines}</table>{_image(picture)}"


def _image(picture: Path | None) -> str:
    if picture is None or not picture.is_file():
        return ""
    from PIL import Image

    content = BytesIO()
    with Image.open(picture) as image:
        image.thumbnail((PICTURE_PX, PICTURE_PX))
        image.convert("RGB").save(content, "JPEG", quality=85)
    source = base64.b64encode(content.getvalue()).decode("ascii")
    return f'<img alt="{escape(picture.name)}" src="data:image/jpeg;base64,{source}">'


def format_value(value: Any) -> str:
    """A value as text: floats to four digits, thousands separators, lists with commas, "–" if missing."""
    if is_missing(value):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        number = float(value)
        return f"{number:,.4g}" if abs(number) < 1e5 else f"{number:,.0f}"
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return ", ".join(format_value(item) for item in value)
    return str(value)


def is_missing(value: Any) -> bool:
    """Whether a value is None or NaN."""
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))
