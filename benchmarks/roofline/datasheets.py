"""Devices by their data sheets, and the speed bound that follows. Nothing here is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mclst.benchmarks.roofline.onnx_flops import GraphWork

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Device:
    """A device by its data sheet.

    operations: per second by precision, dense, of the matrix units; fp32 without TF32. memory: bytes per
    second. link: bytes per second from the host, one way; None where host and device share memory. source:
    the vendor's document. unconfirmed: those of "memory" and the precisions whose figure no readable copy of
    it confirms.
    """

    name: str
    operations: dict[str, float]
    memory: float
    link: float | None
    source: str
    unconfirmed: tuple[str, ...] = ()


_PCIE4_X16, _PCIE5_X16 = 31.5 * GIGA, 63.0 * GIGA

DEVICES = {
    "orin": Device(
        "Jetson AGX Orin 64GB, its GPU alone",
        {"fp32": 5.3 * TERA, "fp16": 42.5 * TERA, "bf16": 42.5 * TERA, "int8": 85.0 * TERA},
        204.8 * GIGA,
        None,
        # 2048 cores, 64 tensor cores; of the 275 TOPS that are advertised 105 are the two DLAs'.
        "Jetson AGX Orin technical brief: 5.3 TFLOPS FP32, 170 sparse INT8 TOPS, of which dense is half "
        "and FP16 a quarter; 204.8 GB/s",
        ("memory",),
    ),
    "thor": Device(
        "Jetson T5000 (AGX Thor)",
        {"fp32": 8.1 * TERA, "fp16": 258.8 * TERA, "bf16": 258.8 * TERA, "int8": 517.5 * TERA},
        273.0 * GIGA,
        None,
        # The blog has 1035 for "dense FP4, sparse FP8, sparse INT8" and 517 for "dense FP8, sparse FP16".
        # FP32 is 2 x cores x clock; the clock is from another source.
        "NVIDIA's blog on Jetson Thor, 2025: 1035 sparse INT8 and 517 sparse FP16 TFLOPS, 273 GB/s; "
        "FP32 of 2560 cores at 1.57 GHz",
        ("fp32",),
    ),
    "l4": Device(
        "L4",
        {"fp32": 30.3 * TERA, "fp16": 121.0 * TERA, "bf16": 121.0 * TERA, "int8": 242.5 * TERA},
        300.0 * GIGA,
        _PCIE4_X16,
        "L4 data sheet: 30.3 TFLOPS FP32, 242 sparse FP16, 485 sparse INT8, 300 GB/s, PCIe 4.0 x16",
    ),
    "rtx4090": Device(
        "GeForce RTX 4090",
        {"fp32": 82.6 * TERA, "fp16": 330.3 * TERA, "bf16": 165.2 * TERA, "int8": 660.6 * TERA},
        1008.0 * GIGA,
        _PCIE4_X16,
        # Boards clock higher than the paper's 2.52 GHz: others measured 168 TFLOPS where it says 165.2.
        "Ada architecture white paper: 82.6 TFLOPS FP32, 330.3 dense FP16 with FP16 sums "
        "(twice those with FP32 sums), 165.2 BF16, 660.6 INT8, 1008 GB/s",
    ),
    "h200": Device(
        "H200 SXM",
        {"fp32": 67.0 * TERA, "fp16": 989.5 * TERA, "bf16": 989.5 * TERA, "int8": 1979.0 * TERA},
        4800.0 * GIGA,
        _PCIE5_X16,
        "H200 data sheet: 67 TFLOPS FP32, 1979 sparse FP16, 3958 sparse INT8, 4.8 TB/s, PCIe 5.0 x16",
        ("fp32", "int8"),
    ),
}
"""By the name that `--predict` takes."""


def predict(name: str, precision: str, work: GraphWork, tile_bytes: int, batch: int) -> dict[str, Any]:
    """Least time of `batch` tiles on a device by its data sheet, and the limit that sets it.

    work: of the graph over the batch. tile_bytes: of one uint8 tile, which crosses the link. Arithmetic,
    memory and link are assumed to overlap fully: no run is faster at the data sheet's clocks.
    """
    device = DEVICES[name]
    seconds = {
        "arithmetic": work.products / device.operations[precision],
        "memory": work.least_bytes / device.memory,
    }
    if device.link is not None:
        seconds["link"] = batch * tile_bytes / device.link
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
        "source": device.source
        + (f"; not confirmed: {', '.join(device.unconfirmed)}" if device.unconfirmed else ""),
    }
