"""Energy counters: NVML on a GPU, tegrastats on Jetson, RAPL on a processor.

These are sensors on the board or in the chip, not a meter at the wall.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Lock, Thread
from typing import Protocol

RAPL = Path("/sys/class/powercap")
_TEGRASTATS_MS = 100
# The module's input rail as JetPack 4 to 7 name it; the first present counts.
_RAILS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0", "VIN")


class MeterUnavailable(Exception):
    """A meter that does not work here; the message says why."""


class Meter(Protocol):
    """A running count of joules."""

    name: str
    covers: str

    def joules(self) -> float:
        """Joules since a fixed moment."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


class Nvml:
    """Energy counter of one NVIDIA GPU."""

    name, covers = "nvml", "the GPU's board"

    def __init__(self, index: int = 0) -> None:
        try:
            self._nvml = import_module("pynvml")
            self._nvml.nvmlInit()
            self._gpu = self._nvml.nvmlDeviceGetHandleByIndex(index)
            self.joules()
        except ImportError as error:
            raise MeterUnavailable("nvidia-ml-py is not installed") from error
        except Exception as error:  # NVML's errors share no public base class before it is loaded
            raise MeterUnavailable(f"NVML gives no energy ({error})") from error

    def joules(self) -> float:
        """Joules since the driver was loaded; the counter is in mJ."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)) / 1e3

    def close(self) -> None:
        """Shut NVML down."""
        self._nvml.nvmlShutdown()


@dataclass
class _Zone:
    path: Path
    range_uj: int
    last_uj: int
    wraps: int = 0

    def joules(self) -> float:
        now = int((self.path / "energy_uj").read_text())
        if now < self.last_uj:
            self.wraps += 1
        self.last_uj = now
        return (self.wraps * self.range_uj + now) / 1e6


class Rapl:
    """Packages (sockets) of an Intel or AMD processor; a counter may wrap once between calls."""

    name, covers = "rapl", "the processor's packages"

    def __init__(self, root: Path = RAPL) -> None:
        self._zones: list[_Zone] = []
        for folder in sorted(root.glob("*-rapl:[0-9]*")):
            try:
                if folder.name.count(":") == 1 and (folder / "name").read_text().startswith("package"):
                    range_uj = int((folder / "max_energy_range_uj").read_text())
                    self._zones.append(_Zone(folder, range_uj, int((folder / "energy_uj").read_text())))
            except PermissionError as error:
                raise MeterUnavailable(f"{folder / 'energy_uj'} is readable by root alone") from error
            except (OSError, ValueError):
                continue
        if not self._zones:
            raise MeterUnavailable("no RAPL counter on this system")

    def joules(self) -> float:
        """Joules of all packages together."""
        return sum(zone.joules() for zone in self._zones)

    def close(self) -> None:
        """Nothing to release."""


class Tegrastats:
    """Power of a Jetson module, sampled by tegrastats ten times a second and integrated."""

    name, covers = "tegrastats", "the whole module"

    def __init__(self) -> None:
        program = shutil.which("tegrastats")
        if program is None:
            raise MeterUnavailable("there is no tegrastats")
        self._lock, self._joules = Lock(), 0.0
        self._process = subprocess.Popen(
            [program, "--interval", str(_TEGRASTATS_MS)], stdout=subprocess.PIPE, text=True
        )
        self._watts: float | None = None
        self._at = time.monotonic()
        self._thread = Thread(target=self._read, name="mclst-tegrastats", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 10
        while self._watts is None and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        if self._watts is None:
            self.close()
            raise MeterUnavailable(f"tegrastats reports none of {', '.join(_RAILS)}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            watts = module_watts(line)
            if watts is None:
                continue
            now = time.monotonic()
            with self._lock:
                if self._watts is not None:
                    self._joules += (self._watts + watts) / 2 * (now - self._at)
                self._watts, self._at = watts, now

    def joules(self) -> float:
        """Joules since it was opened; the last power reading extends to now."""
        with self._lock:
            return self._joules + (self._watts or 0.0) * (time.monotonic() - self._at)

    def close(self) -> None:
        """Stop tegrastats."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self._thread.join(timeout=5)
        if self._process.stdout is not None:
            self._process.stdout.close()


def module_watts(line: str) -> float | None:
    """Watts of the module's input in a line of tegrastats; None where the line has no such rail.

    Format: `VDD_IN 4523mW/4523mW` (now/average) since JetPack 5, `VDD_IN 4523/4523` before.
    """
    rails = {name: float(mw) / 1e3 for name, mw in re.findall(r"\b([A-Z][A-Z0-9_]+) (\d+)(?:mW)?/\d+", line)}
    return next((rails[name] for name in _RAILS if name in rails), None)


def open_meters(*, gpu: bool, rapl: Path = RAPL) -> tuple[list[Meter], dict[str, str]]:
    """Open every meter that works here.

    Returns
    -------
    meters : list of Meter
    unavailable : dict
        Why each other meter does not work, by name.
    """
    kinds: dict[str, Callable[[], Meter]] = {"tegrastats": Tegrastats, "rapl": lambda: Rapl(rapl)}
    unavailable: dict[str, str] = {}
    if gpu:
        kinds = {"nvml": Nvml, **kinds}
    else:
        unavailable["nvml"] = "no GPU takes part"
    meters: list[Meter] = []
    for name, open_meter in kinds.items():
        try:
            meters.append(open_meter())
        except MeterUnavailable as error:
            unavailable[name] = str(error)
    return meters, unavailable
