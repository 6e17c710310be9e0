"""`mclst-bench latency`: on clocks made up for it, with a trtexec made up for it, and as a command whose JSON is published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner, Result
from small import Small

from mclst.benchmarks import documents, encoders, peaks
from mclst.benchmarks.cli import main
from mclst.benchmarks.encoders import Encoder, Given, trtexec
from mclst.benchmarks.latency import agreement, measure, offline, sustained, warm_up
from mclst.benchmarks.latency_chart import latency_png
from mclst.benchmarks.peers import Absent

SCHEMAS = Path(__file__).resolve().parents[1] / "docs" / "schemas"
TILES = np.zeros((24, 4, 4, 3), np.uint8)


class Clock:
    """A clock that only moves when work is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def encoder(self, name: str, seconds: Callable[[int], float], **how: Any) -> Encoder:
        """An encoder that takes `seconds` of its nth call."""
        calls = [0]

        def encode(tiles: np.ndarray) -> np.ndarray:
            self.now += seconds(calls[0])
            calls[0] += 1
            return np.ones((len(tiles), 3), np.float32)

        return Encoder(name, how.pop("ours", False), "fp32", encode, **how)


def test_known_latencies_in_known_percentiles_out() -> None:
    clock, rng = Clock(), np.random.default_rng(5)
    drawn = rng.exponential(0.01, 100_000) + 0.001
    encoders = [
        clock.encoder("steady", lambda n: 0.02, ours=True),
        clock.encoder("exponential", lambda n: drawn[n]),
    ]
    told = measure(encoders, TILES, batch=8, rounds=20, block_s=3.0, warm_s=(0.05, 0.05), clock=clock)
    steady, exponential = told["results"]
    assert told["scenario"] == "batch" and told["first"] == "steady"
    assert steady["latency_s"]["percentiles"]["p99"]["s"] == pytest.approx(0.02)
    assert steady["tiles_per_s"] == pytest.approx(8 / 0.02)
    assert steady["latency_s"]["n"] == pytest.approx(20 * 150, rel=0.01)
    for level in (50, 90, 95, 99):
        found = exponential["latency_s"]["percentiles"][f"p{level}"]["s"]
        assert found == pytest.approx(0.001 - 0.01 * np.log(1 - level / 100), rel=0.06)
    assert exponential["latency_to_first"] == pytest.approx(0.011 / 0.02, rel=0.05)
    samples = exponential["samples"]
    assert len(samples["query_s"]) == exponential["latency_s"]["n"]
    assert len(samples["round_mean_s"]) == 20
    assert exponential["latency_s"]["mean"] == pytest.approx(np.mean(samples["query_s"]), rel=1e-4)


def test_blocks_take_turns_and_ratios_do_not_see_drift() -> None:
    clock, order = Clock(), []

    def slowing(name: str, seconds: float) -> Callable[[int], float]:
        def of(n: int) -> float:
            order.append(name)
            return seconds * (1 + clock.now / 10)  # a machine that gets slower and slower

        return of

    encoders = [clock.encoder("a", slowing("a", 0.01)), clock.encoder("b", slowing("b", 0.03))]
    told = measure(encoders, TILES, batch=1, rounds=9, block_s=0.2, warm_s=(0.01, 0.01), clock=clock)
    assert told["results"][1]["latency_to_first"] == pytest.approx(3, rel=0.1)
    assert told["scenario"] == "single-stream"
    turns = [name for at, name in enumerate(order) if at == 0 or order[at - 1] != name]
    assert len(turns) >= 10


def test_warming_up_waits_until_the_times_settle() -> None:
    clock = Clock()
    falling = clock.encoder("falling", lambda n: 0.01 + 0.1 * 0.8**n)
    told = warm_up(lambda: falling.encode(TILES[:1]), least_s=0.1, most_s=50, clock=clock)
    assert told.settled and 5 < told.queries < 60
    restless = clock.encoder("restless", lambda n: 0.01 if n % 2 else 0.03)
    told = warm_up(lambda: restless.encode(TILES[:1]), least_s=0.02, most_s=1.0, clock=clock)
    assert not told.settled and told.seconds >= 1.0
    slow = clock.encoder("slow", lambda n: 100.0)
    assert warm_up(lambda: slow.encode(TILES[:1]), least_s=0.1, most_s=1, clock=clock).queries == 3


def test_energy_goes_to_the_tiles_it_was_used_for() -> None:
    clock = Clock()
    meter = SimpleNamespace(name="made", covers="all", joules=lambda: 50 * clock.now, close=lambda: None)
    encoders = [clock.encoder("a", lambda n: 0.01), clock.encoder("b", lambda n: 0.04)]
    told = measure(
        encoders, TILES, batch=4, rounds=3, block_s=0.4, meters=[meter], warm_s=(0.01, 0.01), clock=clock
    )
    joules = [result["joules_per_tile"]["made"] for result in told["results"]]
    assert joules == pytest.approx([50 * 0.01 / 4, 50 * 0.04 / 4])


def test_sustained_work_that_slows_down_is_seen() -> None:
    clock = Clock()
    encoder = clock.encoder("a", lambda n: 0.01 if clock.now < 60 else 0.02)
    meter = SimpleNamespace(name="made", covers="all", joules=lambda: 7 * clock.now, close=lambda: None)
    told = sustained(
        encoder, TILES, batch=8, seconds=120, window_s=5, condition=lambda: {"at": clock.now}, meters=[meter],
        clock=clock,
    )  # fmt: skip
    assert told["last_to_first"] == pytest.approx(0.5, rel=0.02)
    assert told["windows"][0]["tiles_per_s"] == pytest.approx(800)
    assert told["windows"][3]["watts"] == pytest.approx({"made": 7})
    assert len(told["windows"]) == 24 and told["windows"][-1]["condition"]["at"] == pytest.approx(clock.now)


def test_offline_takes_every_tile_in_each_ones_own_batch() -> None:
    seen: dict[str, list[int]] = {"a": [], "b": []}

    def encoder(name: str) -> Encoder:
        def encode(tiles: np.ndarray) -> np.ndarray:
            seen[name].append(len(tiles))
            return np.zeros((len(tiles), 3), np.float32)

        return Encoder(name, False, "fp32", encode)

    told = offline([encoder("a"), encoder("b")], {"a": 10, "b": 24}, TILES, rounds=2)
    assert seen["a"] == [10, 10, 4] * 3 and seen["b"] == [24] * 3
    assert [result["batch"] for result in told["results"]] == [10, 24]


def test_agreement_is_the_worst_tiles() -> None:
    wanted = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    turned = Encoder("turned", False, "fp32", lambda tiles: np.array([[1.0, 0.0], [2.0, 2.0]], np.float32))
    found = agreement([turned], TILES[:2], wanted)["turned"]
    assert found["cosine_min"] == pytest.approx(np.sqrt(0.5)) and found["max_abs_share"] == pytest.approx(1.0)


# --- trtexec ------------------------------------------------------------------------------------------------------


def test_trtexec_builds_once_per_batch_and_tells_its_latencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    program = tmp_path / "trtexec"
    program.write_text(
        f"""#!/bin/sh
echo "$@" >> {log}
for word in "$@"; do case $word in
  --exportTimes=*) echo '[{{"latencyMs": 2.5, "computeMs": 2}}, {{"latencyMs": 3.5, "computeMs": 3}}]' > "${{word#--exportTimes=}}" ;;
  --saveEngine=*) : > "${{word#--saveEngine=}}" ;;
esac; done
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    encoder = trtexec(Given(tmp_path, {"fp32": tmp_path / "e.onnx"}, 1, 224))
    assert encoder.times is not None
    assert encoder.times(8, 0.5) == [0.0025, 0.0035] == encoder.times(8, 0.5)
    lines = log.read_text().splitlines()
    assert [("--saveEngine" in line, "--loadEngine" in line) for line in lines] == [(True, False), (False, True), (False, True)]  # fmt: skip
    assert "--shapes=tiles:8x224x224x3" in lines[0] and "--duration=1" in lines[1]
    program.write_text("#!/bin/sh\necho 'Unknown option'; exit 1\n")
    with pytest.raises(Absent, match="trtexec fails: Unknown option"):
        encoder.times(16, 1.0)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Absent, match="no trtexec"):
        trtexec(Given(tmp_path, {"fp32": tmp_path / "e.onnx"}, 1, 224))


# --- the command and its documents --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "_SIDE", 128)
    monkeypatch.setattr("mclst.benchmarks.limits._SIDE", 128)
    monkeypatch.setattr("mclst.benchmarks.limits._COPY_BYTES", 1 << 20)


def bench(bundle: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["latency", "--bundle", str(bundle), *words])


def test_a_document_of_real_encoders(
    small: Small, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_slow(given: Given, device: str = "cpu") -> Encoder:
        raise Absent("compiling takes a minute")

    monkeypatch.setattr(encoders, "torch_compiled", too_slow)
    saved, picture = tmp_path / "l.json", tmp_path / "l.png"
    done = bench(
        small_bundle, "--ckpt", str(small.ckpt), "--slide", str(small.slide), "--spots", str(small.spots),
        "--batch-sizes", "1,4", "--repeats", "3", "--block", "0.05", "--settings", "cpu:fp32",
        "--predict", "orin", "--sustained", "0.01", "--json", str(saved), "--plot", str(picture),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(saved.read_text())
    jsonschema.validate(told, json.loads((SCHEMAS / "latency.json").read_text()))
    assert told["settings"]["tiles"] == "of B1.png" and told["settings"]["different_tiles"] == 24
    assert [of_batch["batch"] for of_batch in told["batches"]] == [1, 4]
    names = {result["name"] for result in told["batches"][0]["results"]}
    assert {"mclst cpu fp32", "ONNX Runtime fp32", "torch eager"} <= names
    assert {entry["name"] for entry in told["absent"]} >= {"torch eager cuda", "trtexec fp32"} - names
    work = {w["batch"]: w for w in told["work"]}
    for of_batch in told["batches"]:
        for result in of_batch["results"]:
            assert result["latency_s"]["percentiles"]["p50"]["s"] > 0
            if result["roofline_s"] is not None:
                assert result["of_roofline"] == pytest.approx(
                    result["roofline_s"] / result["latency_s"]["mean"]
                )
        assert work[of_batch["batch"]]["products"] == of_batch["batch"] * work[1]["products"]
    for name, near in told["agreement"]["contenders"].items():
        assert near["cosine_min"] > (0.999 if "bf16" in name else 0.999999), name
    assert told["agreement"]["reference"] == "checkpoint in torch, float32"
    assert all(bound["kind"] == "bound" for bound in told["predictions"]) and len(told["predictions"]) == 8
    assert "bound, not measured: Jetson AGX Orin" in done.stderr
    ran = {name.split()[1] for name in names if name.startswith("mclst ")}
    assert {run["provider"] for run in told["fresh"]} == ran >= {"cpu"}
    assert picture.read_bytes().startswith(b"\x89PNG") and len(latency_png(told)) > 20_000
    for word in ("least cosine", "offline", "sustained", "fresh process", "energy by", "not run here"):
        assert word in done.stderr
    compared = CliRunner().invoke(main, ["compare", str(saved), str(saved)])
    assert compared.exit_code == 0 and "batch 4: torch eager" in compared.stderr


def test_made_up_tiles_and_no_peers(small_bundle: Path) -> None:
    done = bench(
        small_bundle, "--batch-sizes", "2", "--repeats", "1", "--block", "0.01", "--no-peers", "--no-fresh",
        "--no-offline", "--tiles", "4", "--json", "-", "-q",
    )  # fmt: skip
    assert done.exit_code == 0 and done.stderr == "", done.output
    told = json.loads(done.stdout)
    jsonschema.validate(told, json.loads((SCHEMAS / "latency.json").read_text()))
    assert told["settings"]["tiles"] == "made up" and told["offline"] is None and told["fresh"] == []


def test_a_fresh_process_that_fails_loses_no_measurement(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mclst.benchmarks.cold_start.sys.executable", "/bin/false")
    done = bench(
        small_bundle, "--batch-sizes", "2", "--repeats", "1", "--block", "0.01", "--no-peers", "--no-offline",
        "--tiles", "4", "--settings", "cpu:fp32", "--json", "-", "-q",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["fresh"] == [] and [batch["batch"] for batch in told["batches"]] == [2]
    (why,) = [one["why"] for one in told["absent"] if one["name"] == "mclst cpu fp32, fresh process"]
    assert "did not get to its first tile" in why


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--settings", "cpu:int8"), 4, "has no encoder in int8"),
        (("--settings", "tpu:fp32"), 6, "no provider 'tpu'"),
        (("--batch-sizes", "0"), 2, "numbers from 1"),
        (("--slide", "x.svs"), 2, "belong together"),
        (("--predict", "tpu"), 2, "orin"),
        (("--sustained", "nan"), 2, "finite"),
        (("--ckpt", "no.pt"), 4, "no.pt"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    small_bundle: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    done = bench(small_bundle, *words)
    assert done.exit_code == code and says in " ".join(done.output.split()) and "Traceback" not in done.output


@pytest.mark.parametrize("name", documents.DOCUMENTS)
def test_the_published_schema_is_what_the_commands_hold_to(name: str) -> None:
    published = json.loads((SCHEMAS / f"{name}.json").read_text())
    assert published == documents.json_schema(name)
    jsonschema.Draft202012Validator.check_schema(published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema": f"mclst-bench-{name}/1"}, published)
