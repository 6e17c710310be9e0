"""The machine's condition at a moment: clocks, temperatures, what holds the GPU back, load."""

from __future__ import annotations

import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from mclst.benchmarks.harness.measure import load_average

_CPU, _THERMAL = Path("/sys/devices/system/cpu"), Path("/sys/class/thermal")
_CPUINFO = Path("/proc/cpuinfo")

# NVML's bits of what lowers the clocks, those alone that mean heat or power (nvml.h, nvmlClocksThrottleReasons).
_HELD_BACK = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}


def condition(*, gpu: bool = False) -> dict[str, Any]:
    """Describe this moment; what the system does not tell is None.

    monotonic_s; load; cpu_mhz: mean over cores; temperature_c: by thermal zone; gpu: SM and memory clock (MHz),
    temperature, power cap and what holds it back by NVML, None where none is wanted or there.
    """
    return {
        "monotonic_s": time.monotonic(),
        "load": load_average(),
        "cpu_mhz": _cpu_mhz(),
        "temperature_c": _temperatures() or None,
        "gpu": _gpu() if gpu else None,
    }


def _cpu_mhz() -> float | None:
    found = []
    for path in sorted(_CPU.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")):
        with suppress(OSError, ValueError):
            found.append(int(path.read_text()) / 1e3)
    if not found:
        with suppress(OSError, ValueError):
            lines = _CPUINFO.read_text().splitlines()
            found = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return sum(found) / len(found) if found else None


def _temperatures() -> dict[str, float]:
    found = {}
    for zone in sorted(_THERMAL.glob("thermal_zone*")):
        with suppress(OSError, ValueError):
            name = f"{(zone / 'type').read_text().strip()} ({zone.name.removeprefix('thermal_zone')})"
            found[name] = int((zone / "temp").read_text()) / 1e3
    return found


def _gpu() -> dict[str, Any] | None:
    device = None
    with suppress(Exception):  # not installed, no driver, no device: there is nothing to tell
        nvml = import_module("pynvml")
        nvml.nvmlInit()
        device = nvml.nvmlDeviceGetHandleByIndex(0)
    if device is None:
        return None
    bits = _or_none(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, device)
    return {
        "sm_mhz": _or_none(nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_SM),
        "memory_mhz": _or_none(nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_MEM),
        "temperature_c": _or_none(nvml.nvmlDeviceGetTemperature, device, nvml.NVML_TEMPERATURE_GPU),
        "power_limit_w": _scaled(_or_none(nvml.nvmlDeviceGetEnforcedPowerLimit, device)),
        "held_back_by": None if bits is None else [name for bit, name in _HELD_BACK.items() if bits & bit],
    }


def _or_none(ask: Any, *what: Any) -> Any:
    with suppress(
        Exception
    ):  # a device answers some questions and not others (a Jetson, a part of a divided GPU)
        return ask(*what)
    return None


def _scaled(milliwatts: float | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1e3


def throttled(conditions: list[dict[str, Any]], *, share: float = 0.05) -> list[str]:
    """Signs that clocks fell for heat or power over a run, in its conditions one after another; empty: none seen.

    A clock counts as fallen where the mean of the last quarter is more than `share` below that of the first.
    """
    signs = []
    quarter = max(1, len(conditions) // 4)
    clocks: dict[str, list[float | None]] = {
        "CPU clock": [c["cpu_mhz"] for c in conditions],
        "GPU SM clock": [(c["gpu"] or {}).get("sm_mhz") for c in conditions],
    }
    for name, told in clocks.items():
        mhz = [clock for clock in told if clock is not None]
        if not mhz or len(mhz) < len(told):
            continue
        first, last = (sum(part) / quarter for part in (mhz[:quarter], mhz[-quarter:]))
        if last < (1 - share) * first:
            signs.append(f"{name} fell from {first:,.0f} to {last:,.0f} MHz")
    reasons = {r for c in conditions for r in (c["gpu"] or {}).get("held_back_by") or ()}
    return signs + [f"GPU held back by {reason}" for reason in sorted(reasons)]
