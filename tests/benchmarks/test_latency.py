"""The measuring of `mclst-bench latency`: on a fake clock, and with a fake trtexec."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mclst.benchmarks.contenders.base import ContenderInputs, Encoder
from mclst.benchmarks.contenders.peak_memory import measure_peak_memory
from mclst.benchmarks.contenders.tensorrt_peers import polygraphy, trtexec
from mclst.benchmarks.encoder.measure import agreement, measure, offline, sustained, warm_up
from mclst.benchmarks.harness.measure import PeerUnavailable
from mclst.benchmarks.roofline import datasheets
from mclst.benchmarks.schemas.common import PeakMemory

TILES = np.zeros((24, 4, 4, 3), np.uint8)


class Clock:
    """A clock that moves only with work."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def encoder(self, name: str, seconds: Callable[[int], float], **options: Any) -> Encoder:
        """An encoder that takes `seconds` of its nth call."""
        calls = [0]

        def encode(tiles: np.ndarray) -> np.ndarray:
            self.now += seconds(calls[0])
            calls[0] += 1
            return np.ones((len(tiles), 3), np.float32)

        return Encoder(name, options.pop("ours", False), "fp32", encode, **options)


def test_known_latencies_in_known_percentiles_out() -> None:
    clock, rng = Clock(), np.random.default_rng(5)
    drawn = rng.exponential(0.01, 100_000) + 0.001
    encoders = [
        clock.encoder("steady", lambda n: 0.02, ours=True),
        clock.encoder("exponential", lambda n: drawn[n]),
    ]
    report = measure(encoders, TILES, batch=8, rounds=20, block_s=3.0, warm_s=(0.05, 0.05), clock=clock)
    steady, exponential = report["results"]
    assert report["scenario"] == "batch" and report["first"] == "steady"
    assert steady["latency_s"]["percentiles"]["p99"]["s"] == pytest.approx(0.02)
    assert steady["tiles_per_s"] == pytest.approx(8 / 0.02)
    assert steady["latency_s"]["n"] == pytest.approx(20 * 150, rel=0.01)
    for level in (50, 90, 95, 99):
        value = exponential["latency_s"]["percentiles"][f"p{level}"]["s"]
        assert value == pytest.approx(0.001 - 0.01 * np.log(1 - level / 100), rel=0.06)
    assert exponential["latency_to_first"] == pytest.approx(0.011 / 0.02, rel=0.05)
    samples = exponential["samples"]
    assert len(samples["query_s"]) == exponential["latency_s"]["n"]
    assert len(samples["round_mean_s"]) == 20
    assert exponential["latency_s"]["mean"] == pytest.approx(np.mean(samples["query_s"]), rel=1e-4)


def test_a_peer_that_fails_is_left_out_and_the_others_go_on() -> None:
    clock = Clock()

    def fails(*arguments: Any) -> Any:
        raise RuntimeError("no  kernel\nimage")

    steady = clock.encoder("steady", lambda n: 0.02, ours=True)
    peers = [Encoder("broken", False, "fp32", fails), Encoder("late", False, "fp32", fails, measure=fails)]
    report = measure(
        [steady, *peers], TILES, batch=2, rounds=2, block_s=0.1, warm_s=(0.01, 0.01), clock=clock
    )
    assert [result["name"] for result in report["results"]] == ["steady"]
    assert report["failed"] == [{"name": peer.name, "why": "no kernel image"} for peer in peers]
    with pytest.raises(RuntimeError):
        measure([Encoder("ours", True, "fp32", fails)], TILES, batch=2, rounds=1, block_s=0.1, clock=clock)


def test_blocks_take_turns_and_ratios_do_not_see_drift() -> None:
    clock, order = Clock(), []

    def slowing(name: str, seconds: float) -> Callable[[int], float]:
        def of(n: int) -> float:
            order.append(name)
            return seconds * (1 + clock.now / 10)  # a machine that gets slower and slower

        return of

    encoders = [clock.encoder("a", slowing("a", 0.01)), clock.encoder("b", slowing("b", 0.03))]
    report = measure(encoders, TILES, batch=1, rounds=9, block_s=0.2, warm_s=(0.01, 0.01), clock=clock)
    assert report["results"][1]["latency_to_first"] == pytest.approx(3, rel=0.1)
    assert report["scenario"] == "single-stream"
    turns = [name for at, name in enumerate(order) if at == 0 or order[at - 1] != name]
    assert len(turns) >= 10


def test_warming_up_waits_until_the_times_settle() -> None:
    clock = Clock()
    falling = clock.encoder("falling", lambda n: 0.01 + 0.1 * 0.8**n)
    report = warm_up(lambda: falling.encode(TILES[:1]), min_s=0.1, max_s=50, clock=clock)
    assert report.settled and 5 < report.queries < 60
    restless = clock.encoder("restless", lambda n: 0.01 if n % 2 else 0.03)
    report = warm_up(lambda: restless.encode(TILES[:1]), min_s=0.02, max_s=1.0, clock=clock)
    assert not report.settled and report.seconds >= 1.0
    slow = clock.encoder("slow", lambda n: 100.0)
    assert warm_up(lambda: slow.encode(TILES[:1]), min_s=0.1, max_s=1, clock=clock).queries == 3


def test_energy_is_attributed_to_its_tiles() -> None:
    clock = Clock()
    meter = SimpleNamespace(name="made", covers="all", joules=lambda: 50 * clock.now, close=lambda: None)
    encoders = [clock.encoder("a", lambda n: 0.01), clock.encoder("b", lambda n: 0.04)]
    report = measure(
        encoders, TILES, batch=4, rounds=3, block_s=0.4, meters=[meter], warm_s=(0.01, 0.01), clock=clock
    )
    joules = [result["joules_per_tile"]["made"] for result in report["results"]]
    assert joules == pytest.approx([50 * 0.01 / 4, 50 * 0.04 / 4])


def test_sustained_work_that_slows_down_is_seen() -> None:
    clock = Clock()
    encoder = clock.encoder("a", lambda n: 0.01 if clock.now < 60 else 0.02)
    meter = SimpleNamespace(name="made", covers="all", joules=lambda: 7 * clock.now, close=lambda: None)
    report = sustained(
        encoder, TILES, batch=8, seconds=120, window_s=5, condition=lambda: {"at": clock.now}, meters=[meter],
        clock=clock,
    )  # fmt: skip
    assert report["last_to_first"] == pytest.approx(0.5, rel=0.02)
    assert report["windows"][0]["tiles_per_s"] == pytest.approx(800)
    assert report["windows"][3]["watts"] == pytest.approx({"made": 7})
    assert len(report["windows"]) == 24 and report["windows"][-1]["condition"]["at"] == pytest.approx(
        clock.now
    )


def test_offline_takes_every_tile_in_each_ones_own_batch() -> None:
    seen: dict[str, list[int]] = {"a": [], "b": []}

    def encoder(name: str) -> Encoder:
        def encode(tiles: np.ndarray) -> np.ndarray:
            seen[name].append(len(tiles))
            return np.zeros((len(tiles), 3), np.float32)

        return Encoder(name, False, "fp32", encode)

    report = offline([encoder("a"), encoder("b")], {"a": 10, "b": 24}, TILES, rounds=2)
    assert seen["a"] == [10, 10, 4] * 3 and seen["b"] == [24] * 3
    assert [result["batch"] for result in report["results"]] == [10, 24]


def test_agreement_is_the_worst_tiles() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    turned = Encoder("turned", False, "fp32", lambda tiles: np.array([[1.0, 0.0], [2.0, 2.0]], np.float32))
    result = agreement([turned], TILES[:2], reference)["turned"]
    assert result["cosine_min"] == pytest.approx(np.sqrt(0.5))
    assert result["max_abs_share"] == pytest.approx(1.0)


# --- trtexec
# ------------------------------------------------------------------------------------------------------


def test_trtexec_builds_once_per_batch_and_reports_its_latencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    program = tmp_path / "trtexec"
    program.write_text(
        f"""#!/bin/sh
case "$1" in --help)
  echo "&&&& RUNNING TensorRT.trtexec [TensorRT v110100] [b9]"
  echo "--useSpinWait --useCudaGraph --includeDataTransfers"; exit;;
esac
echo "$@" >> {log}
for word in "$@"; do case $word in
  --exportTimes=*) cat {tmp_path}/trace > "${{word#--exportTimes=}}" ;;
  --saveEngine=*) : > "${{word#--saveEngine=}}" ;;
esac; done
"""
    )
    program.chmod(0o755)
    trace = [
        {"h2dMs": 0.25, "computeMs": compute, "d2hMs": 0.125, "latencyMs": compute + 0.375}
        for compute in (2, 3)
    ]
    (tmp_path / "trace").write_text(json.dumps(trace))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    encoder = trtexec(ContenderInputs(tmp_path, {"fp32": tmp_path / "e.onnx"}, 1, 224))
    assert encoder.measure is not None
    assert encoder.versions == {"trtexec": "110100"}
    report = encoder.measure(8, 0.5)
    assert report == encoder.measure(8, 0.5) and report.query_s == pytest.approx([0.002375, 0.003375])
    assert report.device_s == {"upload": [0.00025] * 2, "encode": [0.002, 0.003], "download": [0.000125] * 2}
    result = measure([encoder], TILES, batch=8, rounds=2, block_s=0.5)["results"][0]
    assert result["device_s"]["encode"]["mean"] == pytest.approx(0.0025)
    assert result["samples"]["copy down_s"] == [0.000125] * 4
    lines = log.read_text().splitlines()[:3]
    assert ["--saveEngine" in line for line in lines] == [True, False, False]
    assert ["--loadEngine" in line for line in lines] == [False, True, True]
    assert "--shapes=tiles:8x224x224x3" in lines[0] and "--duration=1" in lines[1]
    # Since version 11 copies need this option; older versions lack it.
    assert lines[1].endswith("--useSpinWait --useCudaGraph --includeDataTransfers")
    program.write_text(program.read_text().replace(" --includeDataTransfers", ""))
    older = trtexec(ContenderInputs(tmp_path, {"fp32": tmp_path / "e.onnx"}, 1, 224))
    assert older.measure is not None and older.measure(8, 0.5) == report
    assert log.read_text().splitlines()[-1].endswith("--useSpinWait --useCudaGraph")
    program.write_text("#!/bin/sh\necho 'Unknown option'; exit 1\n")
    with pytest.raises(PeerUnavailable, match="trtexec fails: Unknown option"):
        encoder.measure(16, 1.0)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PeerUnavailable, match="no trtexec"):
        trtexec(ContenderInputs(tmp_path, {"fp32": tmp_path / "e.onnx"}, 1, 224))


def test_polygraphy_has_an_engine_for_each_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polygraphy.backend import trt

    inputs, opened = ContenderInputs(tmp_path, {"fp32": tmp_path / "e.onnx"}, 1, 4), []

    class Runner:
        """Replaces the part that needs a GPU; engine, network and profile are Polygraphy's."""

        def __init__(self, engine: Any) -> None:
            assert isinstance(engine, trt.EngineFromNetwork)
            (self.profile,), self.active = engine._config.profiles, False
            assert engine._network.path == str(tmp_path / "e.onnx") and engine._network.strongly_typed
            opened.append(self)

        def activate(self) -> None:
            self.active = True

        def deactivate(self) -> None:
            self.active = False

        def infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            assert (
                self.active and self.profile["tiles"].min == self.profile["tiles"].max == feed["tiles"].shape
            )
            return {"embedding": feed["tiles"].reshape(len(feed["tiles"]), -1)[:, :3].astype(np.float32)}

    with pytest.raises(PeerUnavailable, match="tensorrt is not installed"):
        polygraphy(inputs)
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setattr(trt, "TrtRunner", Runner)
    with pytest.raises(PeerUnavailable, match="no fp16 graph"):
        polygraphy(inputs, "fp16")
    peer = polygraphy(inputs)
    assert peer.gpu and "polygraphy" in peer.versions
    for batch in (2, 2, 5):
        tiles = np.random.default_rng(batch).integers(0, 256, (batch, 4, 4, 3), dtype=np.uint8)
        np.testing.assert_array_equal(peer.encode(tiles), tiles[:, 0, 0])
    assert [runner.active for runner in opened] == [False, True]


# --- memory, and the data sheets
# ------------------------------------------------------------------------------------


def test_memory_of_a_peer_in_its_own_process(exported_bundle: Path) -> None:
    arguments = {"bundle_path": exported_bundle, "ckpt": None, "settings": [("cpu", "fp32")], "threads": 1}
    result = measure_peak_memory("ONNX Runtime fp32", "encoder", **arguments, batch=4)
    assert 20e6 < result["before_bytes"] < result["peak_rss_bytes"] < 1e9 and result["why"] == ""
    failed = measure_peak_memory("torch eager", "encoder", **arguments, batch=4)
    assert failed["peak_rss_bytes"] is None and "give --ckpt" in failed["why"]
    for entry in (result, failed):
        PeakMemory.model_validate(entry)


@pytest.mark.parametrize(
    ("name", "fp16", "int8"),
    [("orin", 42.5, 85), ("thor", 258.75, 517.5), ("l4", 121, 242.5), ("h200", 989.5, 1979)],
)
def test_a_bound_is_the_slowest_of_arithmetic_memory_and_bus(name: str, fp16: float, int8: float) -> None:
    device = datasheets.DEVICES[name]
    assert device.operations["fp16"] == pytest.approx(fp16 * 1e12, rel=1e-3)
    assert device.operations["int8"] == pytest.approx(int8 * 1e12, rel=1e-3)
    work = SimpleNamespace(products=3e12, least_bytes=2e9)
    report = datasheets.predict(name, "fp16", work, 150_528, 64)  # type: ignore[arg-type]
    parts = {"arithmetic": 3 / fp16, "memory": 2e9 / device.memory}
    if device.link is not None:
        parts["link"] = 64 * 150_528 / device.link
    assert report["seconds"] == pytest.approx(parts, rel=1e-3)
    assert report["at_least_s"] == pytest.approx(max(parts.values()), rel=1e-3)
    assert report["at_most_tiles_per_s"] * report["at_least_s"] == pytest.approx(64)
    assert all(part in report["source"].split("not confirmed: ")[-1] for part in device.unconfirmed)
