"""The `Session` protocol: an encoder open on a provider."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.encoder.ring import Stages
from mclst.runtime.errors import BundleError
from mclst.runtime.progress import Clock

# Tensor names of an encoder graph: it gives embeddings (or features), or the expression itself.
INPUT = "tiles"
OUTPUTS = ("embedding", "expression")
# Tiles per call of `encode`, by default.
DEFAULT_BATCH_SIZE = 16


class Session(Protocol):
    """An encoder open on a provider: the interface between the pipeline and what runs the network.

    Attributes
    ----------
    provider : str
        Name of the provider, such as "cpu" or "tensorrt".
    engine : str
        What determines the values besides the graph: a library version, or the hash of an engine.
    """

    provider: str
    engine: str

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode tiles in one call.

        Parameters
        ----------
        tiles : uint8 [N, H, W, 3]
            RGB, as read from the slide.

        Returns
        -------
        float32 [N, D]
            Embeddings, or expression if the network predicts it directly.
        """
        ...

    def stages(
        self, batch: int, *, group_rows: int, on_device: bool, clock: Clock, slots: int | None = None
    ) -> Stages:
        """Open the same encoder as stages of a `Ring`.

        Parameters
        ----------
        batch : int
            Most tiles per batch.
        group_rows : int
            Most rows retrieved together.
        on_device : bool
            Leave the embeddings on the device, if there is one.
        clock : Clock
            Receives the seconds of each stage.
        slots : int, optional
            Batches in the ring; default chosen by the session.

        Returns
        -------
        Stages

        Raises
        ------
        ResourceError
            If there is not enough memory.
        """
        ...


def check_tiles(tiles: NDArray[np.uint8], tile: tuple[int, ...]) -> None:
    """Raise BundleError unless tiles [N, H, W, 3] have the encoder's [H, W, 3]."""
    if tiles.shape[1:] != tile:
        raise BundleError(
            f"the encoder takes tiles of {tile}, not {tiles.shape[1:]}; the bundle's parts do not belong "
            "together, so export it again"
        )
