"""A session: the encoder open on a provider, uint8 tiles in, embeddings out; ONNX Runtime's on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.encoder.micro_batches import HEAVY_BYTES
from mclst.runtime.encoder.ring import Stages
from mclst.runtime.errors import BundleError
from mclst.runtime.progress import Clock

INPUT = "tiles"
OUTPUTS = ("embedding", "expression")
"""What an encoder may give: embeddings or features, or the expression itself."""

AT_ONCE = 16
"""Tiles handed to an encoder at once, where nothing else is asked for."""


class Session(Protocol):
    """The one swap point between the pipeline and what executes the encoder.

    provider: what executes. engine: what decides its values beside the graph: the version, or the hash of an engine.
    """

    provider: str
    engine: str

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB uint8 [N, H, W, 3] as read from the slide → embeddings (or expression) float32 [N, D]."""
        ...

    def stages(
        self, batch: int, *, group_rows: int, on_device: bool, clock: Clock, slots: int | None = None
    ) -> Stages:
        """The same as stages of a ring, for batches of up to `batch` tiles.

        group_rows: the most rows retrieved together. on_device: leave groups on the device, where there is one.
        clock: told of the seconds of each stage. slots: batches in the ring, by default as many as serve. Raises ResourceError where there is no room.
        """
        ...


def check_tiles(tiles: NDArray[np.uint8], tile: tuple[int, ...]) -> None:
    """Raise BundleError where tiles [N, H, W, 3] are not of the encoder's [H, W, 3]."""
    if tiles.shape[1:] != tile:
        raise BundleError(
            f"the encoder takes tiles of {tile}, not {tiles.shape[1:]}; the bundle's parts do not belong "
            "together, so export it again"
        )


def is_heavy(path: Path) -> bool:
    """Whether a graph, with the file beside it that holds the weights of a large one, is over HEAVY_BYTES."""
    beside = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0) > HEAVY_BYTES
