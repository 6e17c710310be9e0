"""A second decoder of `slide.html`, written from docs/formats.md alone."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np


class PageReader:
    """The metadata of a page and the values of its layers."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8")
        self.metadata: dict[str, Any] = json.loads(self._element("metadata"))
        self.data = self._element("data")
        blocks = self.metadata["blocks"]
        self.xy_px = np.frombuffer(self.block(blocks["xy"]), "<f4").reshape(-1, 2)
        self.spots = self.block(blocks["spots"]).decode().split("\n")

    def _element(self, name: str) -> str:
        match = re.search(f'id="{name}">(.*?)</script>', self.text)
        assert match is not None
        return match[1]

    def block(self, position: list[int]) -> bytes:
        start, length = position
        return zlib.decompress(base64.b64decode(self.data[start : start + length], validate=True))

    def layer(self, name: str) -> dict[str, Any]:
        return next(layer for layer in self.metadata["layers"] if layer["name"] == name)

    def values(self, name: str) -> np.ndarray:
        """Values of a layer [n, channels], in the order of the page."""
        layer = self.layer(name)
        kind = "<u2" if layer["steps"] > 254 else "u1"
        columns = []
        for channel in layer["channels"]:
            codes = np.frombuffer(self.block(channel["block"]), kind).astype(float)
            columns.append(np.where(codes == 0, np.nan, channel["low"] + (codes - 1) * channel["step"]))
        return np.stack(columns, axis=1)
