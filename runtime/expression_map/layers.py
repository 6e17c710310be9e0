"""Layers of a map that follow from its rows, written and verified a block of rows at a time."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import h5py
import numpy as np
from numpy.typing import NDArray

from mclst.runtime.expression_map.row_file import CHUNK_BYTES, RowFile

LAYERS = ("low", "high")

MakeLayers = Callable[[slice, NDArray[np.float32]], Sequence[NDArray[np.float32]]]
"""(rows, their X float32 [b, G]) → low and high, float32 [b, G] each."""


def write_layers(rows: RowFile, offsets: Mapping[str, int], make: MakeLayers) -> dict[str, list[int]]:
    """Write the layers at their offsets of a file whose rows are complete; return each block's checksum."""
    checksums: dict[str, list[int]] = {name: [] for name in offsets}
    genes = rows.shape[1]
    for block in _blocks(rows.shape):
        content = rows.read(rows.row_offset(block.start), 4 * genes * (block.stop - block.start))
        values = make(block, np.frombuffer(content, "<f4").reshape(-1, genes))
        for (name, offset), layer in zip(offsets.items(), values, strict=True):
            whole = np.ascontiguousarray(layer, "<f4").data.cast("B")
            rows.write_bytes(whole, offset + 4 * genes * block.start)
            checksums[name].append(zlib.crc32(whole))
    return checksums


def layers_are_intact(file: h5py.File, checksums: Mapping[str, Sequence[int]]) -> bool:
    """Whether the layers of a map read back as they were written."""
    for name, written in checksums.items():
        layer = file[f"layers/{name}"]
        if written != [zlib.crc32(layer[block].data) for block in _blocks(layer.shape)]:
            return False
    return True


def _blocks(shape: tuple[int, int]) -> list[slice]:
    step = max(1, CHUNK_BYTES // (4 * shape[1]))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
