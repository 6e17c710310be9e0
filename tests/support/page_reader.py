"""A second reader of `slide.html`, from docs/formats.md alone: what the page's own scripts unpack, in plain Python."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np


def whole_numbers(content: bytes, n: int) -> list[int]:
    """The numbers of a block of digits."""
    most, at = content[0], 1
    found: list[int] = []
    each, base = {1: 5, 2: 3, 7: 2, 127: 1}[most], 2 * most + 1
    while len(found) < n:
        byte = content[at]
        at += 1
        for _ in range(each):
            found.append(byte % base - most)
            byte //= base
    found = found[:n]
    for i, number in enumerate(found):
        if abs(number) == most:
            beyond = shift = 0
            while True:
                beyond |= (content[at] & 127) << shift
                shift += 7
                at += 1
                if content[at - 1] < 128:
                    break
            found[i] += beyond if number > 0 else -beyond
    assert at == len(content)
    return found


class PageReader:
    """What a page tells: `told`, its JSON; `values`, of a layer's genes."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        self.told: dict[str, Any] = json.loads(re.search(r'id="told">(.*?)</script>', text)[1])  # type: ignore[index]
        self.letters = re.search(r'id="packed">(.*?)</script>', text)[1]  # type: ignore[index]
        self.xy_px = np.frombuffer(self.bytes("xy"), "<f4").reshape(-1, 2)
        self.spots = self.bytes("spots").decode().split("\n")

    def bytes(self, name: str, part: int | None = None) -> bytes:
        place = self.told["blocks"][name]
        start, length = place if part is None else place[part]
        return zlib.decompress(base64.b64decode(self.letters[start : start + length], validate=True))

    def layer(self, name: str) -> dict[str, Any]:
        return next(layer for layer in self.told["layers"] if layer["name"] == name)

    def values(self, name: str) -> np.ndarray:
        """Of every spot and gene of a layer, [n, g], in the page's order."""
        layer = self.layer(name)
        if layer["compact"] is not None:
            return self._compact(layer)
        kind = "<u2" if layer["steps"] > 254 else "u1"
        codes = [np.frombuffer(self.bytes(name, g), kind) for g in range(len(layer["low"]))]
        found = np.stack(codes, axis=1).astype(float)
        return np.where(found == 0, np.nan, layer["low"] + (found - 1) * layer["step"])

    def _compact(self, layer: dict[str, Any]) -> np.ndarray:
        name, compact, steps = layer["name"], layer["compact"], layer["steps"]
        known = np.frombuffer(self.bytes(f"{name} known"), bool)
        back = np.frombuffer(self.bytes(f"{name} back"), "<u4").reshape(4, -1)
        means = np.frombuffer(self.bytes(f"{name} means"), "<f4").astype(float)
        n, g, r = back.shape[1], len(means), len(compact["mapWeights"])
        loadings = np.frombuffer(self.bytes(f"{name} loadings"), "<i2").reshape(g, r) / compact["unit"]

        def foretold(of: Any, weights: list[float], spot: int) -> float:
            total = 0.0
            for weight, far in zip(weights, back[:, spot].tolist(), strict=True):
                total += weight * of[spot - far] if far else 0.0
            return total

        maps = np.zeros((n, r))
        for place, weights in enumerate(compact["mapWeights"]):
            column = [float(number) for number in whole_numbers(self.bytes(f"{name} maps", place), n)]
            for spot in range(n):
                column[spot] += math.floor(foretold(column, weights, spot) + 0.5)
            maps[:, place] = column
        base = means * steps + maps @ loadings.T
        found = np.full((len(known), g), np.nan)
        for gene in range(g):
            numbers = whole_numbers(self.bytes(name, gene), n)
            off: list[float] = []
            for spot in range(n):
                start = float(base[spot, gene])
                expected = min(steps, max(0.0, start + foretold(off, compact["weights"], spot)))
                off.append(min(steps, max(0.0, expected + numbers[spot])) - start)
            found[known, gene] = layer["low"][gene] + layer["step"][gene] * (base[:, gene] + off)
        return found
