"""Clocks, temperatures, throttling and load of the machine at one moment."""

from __future__ import annotations

import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from mclst.benchmarks.harness.machine import load_average

# NVML's throttle bits that mean heat or power (nvml.h, nvmlClocksThrottleReasons).
_THROTTLE_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}


def thermal_state(*, gpu: bool = False, root: Path = Path("/")) -> dict[str, Any]:
    """Read the state now; values the system does not expose are None.

    monotonic_s; load; cpu_mhz: mean over cores; temperature_c: by thermal zone; gpu, if asked for: clocks
    (MHz), temperature, power cap (W) and throttle reasons by NVML. root: where /sys and /proc are mounted.
    """
    return {
        "monotonic_s": time.monotonic(),
        "load": load_average(),
        "cpu_mhz": _cpu_mhz(root),
        "temperature_c": _temperatures(root) or None,
        "gpu": _gpu() if gpu else None,
    }


def _cpu_mhz(root: Path) -> float | None:
    clocks = []
    for path in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")):
        with suppress(OSError, ValueError):
            clocks.append(int(path.read_text()) / 1e3)
    if not clocks:
        with suppress(OSError, ValueError):
            lines = (root / "proc/cpuinfo").read_text().splitlines()
            clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return sum(clocks) / len(clocks) if clocks else None


def _temperatures(root: Path) -> dict[str, float]:
    zones = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        with suppress(OSError, ValueError):
            name = f"{(zone / 'type').read_text().strip()} ({zone.name.removeprefix('thermal_zone')})"
            zones[name] = int((zone / "temp").read_text()) / 1e3
    return zones


def _gpu() -> dict[str, Any] | None:
    device = None
    with suppress(Exception):  # no package, driver or device: nothing to report
        nvml = import_module("pynvml")
        nvml.nvmlInit()
        device = nvml.nvmlDeviceGetHandleByIndex(0)
    if device is None:
        return None
    bits = _query(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, device)
    milliwatts = _query(nvml.nvmlDeviceGetEnforcedPowerLimit, device)
    return {
        "sm_mhz": _query(nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_SM),
        "memory_mhz": _query(nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_MEM),
        "temperature_c": _query(nvml.nvmlDeviceGetTemperature, device, nvml.NVML_TEMPERATURE_GPU),
        "power_limit_w": None if milliwatts is None else milliwatts / 1e3,
        "held_back_by": None
        if bits is None
        else [name for bit, name in _THROTTLE_REASONS.items() if bits & bit],
    }


def _query(function: Any, *arguments: Any) -> Any:
    # A device may answer some queries only (a Jetson, a MIG slice).
    with suppress(Exception):
        return function(*arguments)
    return None


def throttling_signs(states: list[dict[str, Any]], *, share: float = 0.05) -> list[str]:
    """Signs of throttling over consecutive states; empty where there are none.

    A clock has fallen where the mean of the last quarter is more than `share` below that of the first.
    """
    signs = []
    quarter = max(1, len(states) // 4)
    clocks: dict[str, list[float | None]] = {
        "CPU clock": [state["cpu_mhz"] for state in states],
        "GPU SM clock": [(state["gpu"] or {}).get("sm_mhz") for state in states],
    }
    for name, readings in clocks.items():
        mhz = [clock for clock in readings if clock is not None]
        if not mhz or len(mhz) < len(readings):
            continue
        first, last = (sum(part) / quarter for part in (mhz[:quarter], mhz[-quarter:]))
        if last < (1 - share) * first:
            signs.append(f"{name} fell from {first:,.0f} to {last:,.0f} MHz")
    reasons = {r for state in states for r in (state["gpu"] or {}).get("held_back_by") or ()}
    return signs + [f"GPU held back by {reason}" for reason in sorted(reasons)]
