"""An encoder as a contender, and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Encode = Callable[[U8], F32]


@dataclass(frozen=True)
class QueryTimes:
    """Seconds of each query, and of its device stages by their names in stages.DEVICE_STAGES."""

    query_s: list[float]
    device_s: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoder:
    """An opened contender.

    ours: whether it is mclst's. precision: of its arithmetic. encode: uint8 tiles [b, H, W, 3] → float32 [b,
    D], done when it returns. gpu: whether it runs on one. versions: of the packages that run it.
    device_seconds: seconds so far of its device stages (stages.DEVICE_STAGES), by events. measure: for
    contenders that time themselves: (batch, seconds) → QueryTimes.
    """

    name: str
    ours: bool
    precision: str
    encode: Encode
    gpu: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    device_seconds: Callable[[], Mapping[str, float]] | None = None
    measure: Callable[[int, float], QueryTimes] | None = None


@dataclass(frozen=True)
class ContenderInputs:
    """Inputs that contenders are opened from.

    bundle: its folder. graphs: ONNX graphs by precision, "fp32" included. threads: of the processor, per
    contender. tile_px: side of a tile. network: the checkpoint's torch module, if there is one. prepare: its
    preprocessing, tiles uint8 [b, S, S, 3] → tensor.
    """

    bundle: Path
    graphs: dict[str, Path]
    threads: int
    tile_px: int
    network: Any = None
    prepare: Callable[[U8], Any] | None = None
