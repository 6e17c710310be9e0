"""What encodes tiles in a benchmark: what it is made from, what it does, what it tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Encode = Callable[[U8], F32]


@dataclass(frozen=True)
class Timed:
    """Seconds of each query, and of each query's stages on the device, by their names in stages.ON_DEVICE."""

    query_s: list[float]
    device_s: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoder:
    """A contender, opened.

    encode: uint8 tiles [b, H, W, 3] → float32 [b, D], done when it returns. gpu: whether it works on one.
    precision: of its arithmetic. versions: of what executes it. threads: of the processor it may use.
    device_seconds: the seconds so far of its stages on a GPU (of stages.ON_DEVICE), by the device's events.
    times: in place of timing `encode`, one that times itself: (batch, seconds) → Timed.
    """

    name: str
    ours: bool
    precision: str
    encode: Encode
    gpu: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    device_seconds: Callable[[], Mapping[str, float]] | None = None
    times: Callable[[int, float], Timed] | None = None


@dataclass(frozen=True)
class ContenderInputs:
    """What contenders are made from.

    bundle: its folder. graphs: by precision, its ONNX graphs, "fp32" among them. threads: of the processor, for each
    contender. tile_px: side of a tile. network: the checkpoint's, a torch module, or None where none was given;
    prepare: its preprocessing, tiles uint8 [b, S, S, 3] → tensor.
    """

    bundle: Path
    graphs: dict[str, Path]
    threads: int
    tile_px: int
    network: Any = None
    prepare: Callable[[U8], Any] | None = None


def versions(*names: str) -> dict[str, str]:
    """Those of the packages that are installed, by name."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
