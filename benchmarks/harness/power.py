"""Energy as the hardware counts it: NVML on a GPU, tegrastats on Jetson, RAPL on a processor; "not available" elsewhere.

All of them are sensors on the board or in the chip, not a meter at the wall.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Protocol

RAPL = Path("/sys/class/powercap")
_TEGRASTATS_MS = 100
# The whole module's input, by the names that JetPack 4, 5, 6 and 7 give it, the first that is there.
_RAILS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0", "VIN")


class NoMeter(Exception):
    """A meter that does not work here; the message says why."""


class Meter(Protocol):
    """A running count of joules."""

    name: str
    covers: str

    def joules(self) -> float:
        """Joules since some fixed moment."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Nvml:
    """The energy counter of one NVIDIA GPU."""

    name, covers = "nvml", "the GPU's board"

    def __init__(self, index: int = 0) -> None:
        try:
            self._nvml = import_module("pynvml")
            self._nvml.nvmlInit()
            self._gpu = self._nvml.nvmlDeviceGetHandleByIndex(index)
            self.joules()
        except ImportError as error:
            raise NoMeter("nvidia-ml-py is not installed") from error
        except Exception as error:  # NVML's errors share no public base class before it is loaded
            raise NoMeter(f"NVML does not tell ({error})") from error

    def joules(self) -> float:
        """Joules since the driver was loaded; its counter is in mJ."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)) / 1e3

    def close(self) -> None:
        """Let go of NVML."""
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
    """The packages (sockets) of an Intel or AMD processor, as Linux shows them; a counter may wrap once between calls."""

    name, covers = "rapl", "the processor's packages"

    def __init__(self, root: Path = RAPL) -> None:
        self._zones: list[_Zone] = []
        for folder in sorted(root.glob("*-rapl:[0-9]*")):
            try:
                if folder.name.count(":") == 1 and (folder / "name").read_text().startswith("package"):
                    most = int((folder / "max_energy_range_uj").read_text())
                    self._zones.append(_Zone(folder, most, int((folder / "energy_uj").read_text())))
            except PermissionError as error:
                raise NoMeter(f"{folder / 'energy_uj'} is readable by root alone") from error
            except (OSError, ValueError):
                continue
        if not self._zones:
            raise NoMeter("this system shows no RAPL counter")

    def joules(self) -> float:
        """Joules of all packages together."""
        return sum(zone.joules() for zone in self._zones)

    def close(self) -> None:
        """Nothing to let go of."""


class Tegrastats:
    """The power that a Jetson module draws, sampled by tegrastats ten times a second and summed up."""

    name, covers = "tegrastats", "the whole module"

    def __init__(self) -> None:
        found = shutil.which("tegrastats")
        if found is None:
            raise NoMeter("there is no tegrastats")
        self._lock, self._joules = Lock(), 0.0
        self._process = subprocess.Popen(
            [found, "--interval", str(_TEGRASTATS_MS)], stdout=subprocess.PIPE, text=True
        )
        self._watts: float | None = None
        self._at = time.monotonic()
        self._thread = Thread(target=self._read, name="mclst-tegrastats", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 3
        while self._watts is None and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        if self._watts is None:
            self.close()
            raise NoMeter(f"tegrastats names none of {', '.join(_RAILS)}")

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
        """Joules since it was opened, up to this moment at the power seen last."""
        with self._lock:
            return self._joules + (self._watts or 0.0) * (time.monotonic() - self._at)

    def close(self) -> None:
        """End tegrastats."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self._thread.join(timeout=5)


def module_watts(line: str) -> float | None:
    """Watts of the module's input in a line of tegrastats, None where it names no such rail.

    Rails stand as `VDD_IN 4523mW/4523mW` (now/average) since JetPack 5, as `VDD_IN 4523/4523` before.
    """
    rails = {name: float(mw) / 1e3 for name, mw in re.findall(r"\b([A-Z][A-Z0-9_]+) (\d+)(?:mW)?/\d+", line)}
    return next((rails[name] for name in _RAILS if name in rails), None)


def open_meters(*, gpu: bool) -> tuple[list[Meter], dict[str, str]]:
    """Every meter that works here, and why the others do not; `gpu`: whether one of a GPU is wanted."""
    kinds: list[tuple[str, Any]] = [("tegrastats", Tegrastats), ("rapl", Rapl)]
    if gpu:
        kinds.insert(0, ("nvml", Nvml))
    opened: list[Meter] = []
    why: dict[str, str] = {} if gpu else {"nvml": "no GPU takes part"}
    for name, kind in kinds:
        try:
            opened.append(kind())
        except NoMeter as error:
            why[name] = str(error)
    return opened, why
