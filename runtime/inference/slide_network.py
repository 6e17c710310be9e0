"""Features of all tiles of a slide → expression, for networks over the whole slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.bundle.manifest import SlideNetwork
from mclst.runtime.encoder.onnxruntime_cpu import open_graph
from mclst.runtime.errors import BundleError, SpotsError
from mclst.runtime.inference.spot_graph import nearest_spots
from mclst.sections.section import Spots


class SlideNetworkSession:
    """The part of a network that runs once per slide.

    Attention runs over blocks of queries, so memory grows linearly with the number of spots. features: F per
    spot.
    """

    def __init__(
        self, path: Path, settings: SlideNetwork, provider: str, *, threads: int | None = None
    ) -> None:
        """Open `path` on "cpu" or "cuda"; raises ResourceError or BundleError."""
        self._session = open_graph(path, provider, threads=threads)
        self._settings = settings
        expected = ["embedding", "position", *(("neighbours", "linked") if settings.graph else ())]
        inputs = [i.name for i in self._session.get_inputs()]
        if inputs != expected or self._session.get_outputs()[0].name != "expression":
            raise BundleError(
                f"{path} takes {inputs} and the manifest asks for {expected}; export the bundle again"
            )
        self.features = int(self._session.get_inputs()[0].shape[1])

    def predict_expression(
        self, features: NDArray[np.float32], array_xy: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Predict expression float32 [N, G] from features [N, F] and array coordinates int64 [N, 2]."""
        inputs = {"embedding": features, "position": array_xy}
        if self._settings.graph is not None:
            inputs["neighbours"], inputs["linked"] = nearest_spots(array_xy, self._settings.graph)
        expression: NDArray[np.float32] = self._session.run(["expression"], inputs)[0]
        return expression


def check_positions(spots: Spots, rows: int) -> NDArray[np.int64]:
    """Return the spots' array coordinates int64 [n, 2]; raise SpotsError if one is outside 0 … rows - 1."""
    if spots.array_xy is None:
        raise SpotsError(
            f"{spots.path} has no array coordinates, which this system needs of every spot; "
            "give a legacy ST or Space Ranger table"
        )
    beyond = (spots.array_xy < 0).any(1) | (spots.array_xy >= rows).any(1)
    if beyond.any():
        first = int(np.argmax(beyond))
        x, y = spots.array_xy[first]
        raise SpotsError(
            f"{spots.path}, line {spots.row[first]}: spot {spots.id[first]} is at array position ({x}, {y}), "
            f"and {int(beyond.sum()) - 1} more are beyond the model's 0 … {rows - 1}; use a model trained on "
            "this array"
        )
    return spots.array_xy
