"""The linear head of a fitted bundle, which runs beside its encoder.

So heads on one network share what the encoder gives, and a value does not depend on whether its features were
encoded now or kept from an earlier run.
"""

from __future__ import annotations

from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.bundle.onnx_split import FEATURES, SplitGraph, split_graph
from mclst.runtime.choices import ON_CPU
from mclst.runtime.encoder.onnxruntime_cpu import open_graph

FITTED = ("fitted", "fitted-retrieval")


class LinearHead:
    """A head in fp32, by ONNX Runtime on the CPU.

    Parameters
    ----------
    path : Path
        The whole graph, for messages.
    split : SplitGraph

    Attributes
    ----------
    width : int
        Features per tile.
    """

    def __init__(self, path: Path, split: SplitGraph) -> None:
        self.width = split.width
        self._session: Any = open_graph(path, "cpu", content=split.head)

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features [b, F] → what the whole graph gives [b, D]."""
        values: NDArray[np.float32] = self._session.run(None, {FEATURES: np.ascontiguousarray(features)})[0]
        return values


class SplitEncoders:
    """The encoders of a bundle without their linear head, where they have one and run on the CPU.

    Parameters
    ----------
    bundle : Bundle
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._hashes: dict[str, str] = {}

    def encoder(self, provider: str, precision: str) -> bytes | None:
        """Return the graph up to the features; None where the graph runs as a whole."""
        if not self._divides(provider, precision):
            return None
        split = split_graph(self._bundle.encoder(precision))
        if split is None:
            return None
        self._hashes[precision] = sha256(split.encoder).hexdigest()
        return split.encoder

    def head(self, provider: str, precision: str) -> LinearHead | None:
        """Return what turns the encoder's features into its values; None where the graph does."""
        return self._head if self._divides(provider, precision) else None

    def encoder_sha256(self, provider: str, precision: str) -> str:
        """SHA-256 of what the encoder computes, whatever the bundle has behind and beside it."""
        if not self._divides(provider, precision):
            return self._bundle.encoder_sha256(precision)
        if precision not in self._hashes:
            self.encoder(provider, precision)
        weights = self._bundle.manifest.files.get(f"{self._bundle.encoder(precision).name}.data")
        return self._hashes[precision] + ("" if weights is None else f" {weights.sha256}")

    def _divides(self, provider: str, precision: str) -> bool:
        manifest = self._bundle.manifest
        # With a neighborhood, what waits for neighbors is kept as the whole graph gives it.
        if provider not in ON_CPU or manifest.system not in FITTED or manifest.neighborhood is not None:
            return False
        path = self._bundle.encoder(precision)
        # OpenVINO takes no graph in memory whose weights are in a file.
        if provider == "openvino" and path.with_name(f"{path.name}.data").exists():
            return False
        return self._head is not None

    @cached_property
    def _head(self) -> LinearHead | None:
        path = self._bundle.encoder()
        split = split_graph(path)
        return None if split is None else LinearHead(path, split)
