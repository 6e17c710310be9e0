"""What vendors publish of devices one may not have, and the bound that follows: never a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mclst.benchmarks.graph_work import GraphWork

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Device:
    """A device by its data sheet.

    operations: a second, by precision, dense (no structured sparsity), of the units that multiply matrices; fp32
    without TF32. memory: bytes a second. link: bytes a second from the host in one direction, None where host and
    device share their memory.
    """

    name: str
    operations: dict[str, float]
    memory: float
    link: float | None
    source: str


_PCIE4_X16, _PCIE5_X16 = 31.5 * GIGA, 63.0 * GIGA

DEVICES = {
    "orin": Device(
        "Jetson AGX Orin 64GB, its GPU alone",
        {"fp32": 5.3 * TERA, "fp16": 42.5 * TERA, "bf16": 42.5 * TERA, "int8": 85.0 * TERA},
        204.8 * GIGA,
        None,
        "Jetson AGX Orin technical brief: 5.3 TFLOPS FP32, 170 sparse INT8 TOPS, 204.8 GB/s",
    ),
    "thor": Device(
        "Jetson T5000 (AGX Thor)",
        {"fp32": 8.1 * TERA, "fp16": 258.8 * TERA, "bf16": 258.8 * TERA, "int8": 517.5 * TERA},
        273.0 * GIGA,
        None,
        "Jetson Thor data sheet: 2070 sparse FP4 TFLOPS, of which dense INT8 is a quarter and FP16 an eighth; "
        "2560 cores at 1.57 GHz; 273 GB/s",
    ),
    "l4": Device(
        "L4",
        {"fp32": 30.3 * TERA, "fp16": 121.0 * TERA, "bf16": 121.0 * TERA, "int8": 242.5 * TERA},
        300.0 * GIGA,
        _PCIE4_X16,
        "L4 data sheet: 30.3 TFLOPS FP32, 242 sparse FP16, 485 sparse INT8, 300 GB/s",
    ),
    "rtx4090": Device(
        "GeForce RTX 4090",
        {"fp32": 82.6 * TERA, "fp16": 330.3 * TERA, "bf16": 165.2 * TERA, "int8": 660.6 * TERA},
        1008.0 * GIGA,
        _PCIE4_X16,
        "Ada architecture white paper: 82.6 TFLOPS FP32, 330.3 dense FP16 with FP16 sums, 165.2 BF16, 660.6 INT8, "
        "1008 GB/s",
    ),
    "h200": Device(
        "H200 SXM",
        {"fp32": 67.0 * TERA, "fp16": 989.5 * TERA, "bf16": 989.5 * TERA, "int8": 1979.0 * TERA},
        4800.0 * GIGA,
        _PCIE5_X16,
        "H200 data sheet: 67 TFLOPS FP32, 1979 sparse FP16, 3958 sparse INT8, 4.8 TB/s",
    ),
}
"""By the name `--predict` takes."""


def predict(name: str, precision: str, work: GraphWork, tile_bytes_in: int, batch: int) -> dict[str, Any]:
    """The least time of `batch` tiles on a device by its data sheet, and what bounds it.

    work: of a graph of that precision over the batch. tile_bytes_in: bytes of one uint8 tile, which crosses the link.
    The three limits (arithmetic, memory, link) are taken to overlap fully, so that no run can be faster; how much
    slower one is, this does not say.
    """
    device = DEVICES[name]
    seconds = {
        "arithmetic": work.products / device.operations[precision],
        "memory": work.least_bytes / device.memory,
    }
    if device.link is not None:
        seconds["link"] = batch * tile_bytes_in / device.link
    limit = max(seconds, key=lambda part: seconds[part])
    return {
        "kind": "bound",
        "device": name,
        "device_name": device.name,
        "precision": precision,
        "batch": batch,
        "at_least_s": seconds[limit],
        "at_most_tiles_per_s": batch / seconds[limit],
        "limited_by": limit,
        "seconds": seconds,
        "source": device.source,
    }
