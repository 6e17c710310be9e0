"""Energy meters on fake counters (RAPL, tegrastats, NVML), and the thermal state."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mclst.benchmarks.harness.power import (
    MeterUnavailable,
    Nvml,
    Rapl,
    Tegrastats,
    module_watts,
    open_meters,
)
from mclst.benchmarks.harness.thermal_state import thermal_state, throttling_signs


def rapl_zone(root: Path, name: str, kind: str, energy: int, most: int = 1_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for file, text in (("name", kind), ("energy_uj", energy), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{text}\n")
    return folder


def test_rapl_adds_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    first = rapl_zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    second = rapl_zone(tmp_path, "intel-rapl:1", "package-1", 100_000)
    rapl_zone(tmp_path, "intel-rapl:0:0", "core", 5)  # of the first package: counted there already
    rapl_zone(tmp_path, "intel-rapl:2", "psys", 7)
    meter = Rapl(tmp_path)
    before = meter.joules()
    (first / "energy_uj").write_text("200000")
    (second / "energy_uj").write_text("350000")
    assert meter.joules() - before == pytest.approx(0.3 + 0.25)
    (first / "energy_uj").write_text("100000")
    assert meter.joules() - before == pytest.approx(1.2 + 0.25)


def test_rapl_says_why_it_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MeterUnavailable, match="no RAPL"):
        Rapl(tmp_path)
    zone = rapl_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    read = Path.read_text

    def refuse(path: Path, *args: Any, **kwargs: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(MeterUnavailable, match="root alone") as error:
        Rapl(tmp_path)
    assert str(zone) in str(error.value)


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        ("RAM 3122/30536MB GR3D_FREQ 99% VDD_GPU_SOC 2010mW/2010mW VDD_IN 4523mW/4400mW", 4.523),
        ("RAM 2/7MB POM_5V_GPU 120/100 POM_5V_IN 3210/3000 POM_5V_CPU 400/400", 3.21),
        ("VIN_SYS_5V0 6100mW/5000mW VDD_GPU 1mW/1mW", 6.1),
        ("RAM 3122/30536MB CPU [12%@2201,off] GR3D_FREQ 0% cpu@48.5C", None),
    ],
)
def test_lines_of_tegrastats(line: str, watts: float | None) -> None:
    assert module_watts(line) == watts


def tegrastats(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    program = folder / "tegrastats"
    program.write_text(f"#!/bin/sh\nwhile :; do echo '{line}'; sleep 0.05; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_tegrastats_is_summed_up_over_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tegrastats(tmp_path, monkeypatch, "VDD_IN 8000mW/8000mW")
    meter = Tegrastats()
    first, before, second = time.monotonic(), meter.joules(), time.monotonic()
    time.sleep(0.3)
    third, after, fourth = time.monotonic(), meter.joules(), time.monotonic()
    meter.close()
    assert 8 * (third - second) - 1e-6 <= after - before <= 8 * (fourth - first) + 1e-6
    assert meter._process.poll() is not None


def test_tegrastats_without_a_known_rail_or_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tegrastats"
    program.write_text("#!/bin/sh\necho RAM 1/2MB\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(MeterUnavailable, match="reports none of VDD_IN"):
        Tegrastats()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MeterUnavailable, match="no tegrastats"):
        Tegrastats()


class FakeNvml(SimpleNamespace):
    """An NVML whose GPU has used `mj` millijoules."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    mj = 5000.0

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, device: int) -> float:
        return self.mj

    def nvmlDeviceGetClockInfo(self, device: int, kind: int) -> int:
        return 1980 if kind == 1 else 3201

    def nvmlDeviceGetTemperature(self, device: int, kind: int) -> int:
        return 61

    def nvmlDeviceGetEnforcedPowerLimit(self, device: int) -> int:
        raise RuntimeError("not supported")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device: int) -> int:
        return 0x4 | 0x40 | 0x1


def test_nvml_counts_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    meter = Nvml()
    before = meter.joules()
    fake.mj += 2500
    assert meter.joules() - before == pytest.approx(2.5)
    state = thermal_state(gpu=True)["gpu"]
    assert state["sm_mhz"] == 1980 and state["power_limit_w"] is None
    assert state["held_back_by"] == ["power cap", "hardware thermal"]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", "/nowhere")
    meters, why = open_meters(gpu=True, rapl=tmp_path)
    assert meters == [] and set(why) == {"nvml", "tegrastats", "rapl"}
    assert "nvidia-ml-py" in why["nvml"]
    assert open_meters(gpu=False, rapl=tmp_path)[1]["nvml"] == "no GPU takes part"
    assert thermal_state(gpu=True)["gpu"] is None


def moment(mhz: float | None, sm: float | None = None, reasons: list[str] | None = None) -> dict[str, Any]:
    gpu = None if sm is None else {"sm_mhz": sm, "held_back_by": reasons or []}
    return {"cpu_mhz": mhz, "gpu": gpu}


def test_throttling_shows_in_clocks_and_reasons() -> None:
    assert throttling_signs([moment(3000)] * 8) == []
    assert throttling_signs([moment(3000)] * 4 + [moment(2900)] * 4) == []
    assert throttling_signs([moment(3000)] * 4 + [moment(2400)] * 4) == [
        "CPU clock fell from 3,000 to 2,400 MHz"
    ]
    assert throttling_signs([moment(None)] * 8) == [] and throttling_signs([]) == []
    hot = throttling_signs([moment(None, 1900)] * 4 + [moment(None, 1200, ["hardware thermal"])] * 4)
    assert hot == ["GPU SM clock fell from 1,900 to 1,200 MHz", "GPU held back by hardware thermal"]


def test_the_state_is_what_the_system_exposes(tmp_path: Path) -> None:
    for core, khz in ((0, 2_000_000), (1, 3_000_000)):
        folder = tmp_path / "sys/devices/system/cpu" / f"cpu{core}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{khz}\n")
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("soc\n")
    (zone / "temp").write_text("48500\n")
    state = thermal_state(root=tmp_path)
    assert state["cpu_mhz"] == 2500 and state["temperature_c"] == {"soc (0)": 48.5} and state["gpu"] is None
    nothing = thermal_state(root=tmp_path / "none")
    assert nothing["cpu_mhz"] is None and nothing["temperature_c"] is None
