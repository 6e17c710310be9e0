"""--precision auto: what is tried, what is taken, and what is remembered."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from small_model import Small

from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.choices import FASTEST_FIRST, PRECISIONS
from mclst.runtime.cli.infer import main
from mclst.runtime.encoder.onnxruntime_cpu import OnnxSession
from mclst.runtime.errors import BundleError, ResourceError
from mclst.runtime.providers import candidates as encoder_candidates
from mclst.runtime.providers import choice as encoder_choice
from mclst.runtime.providers import instruction_sets
from mclst.runtime.providers import opening as providers
from mclst.runtime.providers import timings as encoder_timings
from mclst.runtime.providers.candidates import ChoiceRequest, candidates, expected_order
from mclst.runtime.providers.choice import EncoderChoice, choose_encoder, known_choice
from mclst.runtime.providers.timings import (
    FAST_ENOUGH,
    KEPT,
    NEAR,
    Candidate,
    Record,
    Timing,
    fastest,
    is_recent,
    not_settled,
    read_record,
    record_path,
    store_record,
)
from mclst.runtime.providers.trials import LIMIT_SHARE, Trial, is_worth_trying, measure

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
TILES = np.zeros((16, 8, 8, 3), np.uint8)
FP32, INT8, BF16 = ("cpu", "fp32", None), ("openvino", "int8", None), ("openvino", "bf16", None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MCLST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Machine:
    """Encoders that take known seconds per tile, by their own clock."""

    def __init__(
        self, lanes: int = 2, opens_in: float = 0.0, **seconds: Callable[[int], float] | float
    ) -> None:
        """seconds: per tile, by "provider_precision" and perhaps lanes; or a function of the number of the
        call.
        """
        self.seconds, self.now, self.calls = seconds, 0.0, dict.fromkeys(seconds, 0)
        self.opens_in = opens_in
        self.lanes, self.most_open = lanes, 0
        self.sessions: dict[Candidate, Any] = {}

    def clock(self) -> float:
        return self.now

    def open_one(self, candidate: Candidate) -> Any:
        name = "_".join(str(part) for part in candidate if part is not None)
        if name not in self.seconds:
            return None
        self.most_open = max(self.most_open, len(self.sessions) + 1)
        self.now += self.opens_in

        def encode(tiles: np.ndarray) -> None:
            per_tile = self.seconds[name]
            self.now += len(tiles) * (per_tile(self.calls[name]) if callable(per_tile) else per_tile)
            self.calls[name] += 1

        return SimpleNamespace(encode=encode)

    def fewer_lanes(self, candidate: Candidate) -> Candidate | None:
        half = (candidate[2] or self.lanes) // 2
        return (*candidate[:2], half) if half else None

    def measure(self, *names: Candidate, run_tiles: int | None = None) -> list[Timing]:
        trial = Trial(self.open_one, self.fewer_lanes, TILES, self.lanes, run_tiles, self.clock)
        timings, self.refused = measure(names, trial, self.sessions)
        return timings


def test_the_fastest_of_those_that_open_wins() -> None:
    machine = Machine(cpu_fp32=0.05, openvino_int8=0.02)
    timings = machine.measure(FP32, BF16, INT8)
    assert [t.name for t in timings] == [FP32, INT8] and machine.refused[:1] == [BF16]
    assert [t.tiles_per_second for t in timings] == pytest.approx([20, 50], rel=1e-3)
    assert fastest(timings).name == INT8
    assert EncoderChoice(*INT8, timings=tuple(timings)).times_fp32 == pytest.approx(2.5, rel=1e-3)


@pytest.mark.parametrize("slow", range(1, 3))
def test_one_slow_try_decides_nothing(slow: int) -> None:
    """The first call, which allocates, does not count; a slow one is outdone by the others."""
    machine = Machine(cpu_fp32=0.05, openvino_int8=lambda call: 0.5 if call in (0, slow) else 0.02)
    assert fastest(machine.measure(FP32, INT8)).name == INT8


def test_what_is_clearly_slower_is_tried_twice_and_given_up() -> None:
    machine = Machine(cpu_fp32=0.05, openvino_bf16=0.2, openvino_int8=0.045)
    machine.measure(FP32, BF16, INT8)
    assert machine.calls["openvino_bf16"] == 3 and machine.calls["openvino_int8"] >= 5


def test_a_large_encoder_is_tried_with_few_tiles_and_beside_one_other() -> None:
    machine = Machine(cpu_fp32=2.0, openvino_bf16=3.0, openvino_int8=1.0, openvino_int8_1=1.1)
    timings = machine.measure(FP32, BF16, INT8)
    assert fastest(timings).name == INT8 and list(machine.sessions) == [INT8]
    assert machine.most_open == 2, "each takes gigabytes"
    assert machine.calls == {"cpu_fp32": 1, "openvino_bf16": 2, "openvino_int8": 2, "openvino_int8_1": 2}


@pytest.mark.parametrize(
    ("speeds", "chosen", "tried"),
    [
        ({None: 10, 8: 9}, None, 2),
        ({None: 10, 8: 10.2}, None, 2),  # near it, a lane per core stays
        ({None: 10, 8: 12, 4: 13, 2: 12.5}, 4, 4),
        ({None: 10, 8: 11, 4: 12, 2: 13, 1: 14}, 1, 5),
    ],
)
def test_lanes_are_halved_while_that_is_faster(
    speeds: dict[int | None, float], chosen: int | None, tried: int
) -> None:
    seconds = {f"cpu_fp32{'' if n is None else f'_{n}'}": 1 / speed for n, speed in speeds.items()}
    machine = Machine(16, openvino_int8=1 / 5, **seconds)
    timings = machine.measure(FP32, INT8)
    assert fastest(timings).name == ("cpu", "fp32", chosen) and len(timings) == tried + 1
    assert list(machine.sessions) == [("cpu", "fp32", chosen)] and machine.most_open == 2


def test_beside_an_encoder_that_reading_bounds_nothing_is_opened() -> None:
    machine = Machine(cpu_fp32=0.5 / FAST_ENOUGH, openvino_int8=0.1 / FAST_ENOUGH)
    assert [t.name for t in machine.measure(FP32, INT8)] == [FP32]
    assert machine.calls["openvino_int8"] == 0


NAMES = st.tuples(st.sampled_from(FASTEST_FIRST), st.sampled_from(PRECISIONS), st.none() | st.integers(1, 64))
SPEEDS = st.floats(1, 1000)


@given(st.dictionaries(NAMES, SPEEDS, min_size=1))
def test_near_the_fastest_the_most_faithful_is_taken(speeds: dict[Candidate, float]) -> None:
    chosen = fastest([timing(name, speed) for name, speed in speeds.items()])
    limit = max(speeds.values()) * (1 - NEAR)
    assert chosen.tiles_per_second >= limit
    for (_, precision, _), speed in speeds.items():
        assert speed < limit or PRECISIONS.index(precision) >= PRECISIONS.index(chosen.precision)


def timing(name: Candidate, speed: float) -> Timing:
    return Timing(*name[:2], speed, name[2])


def record(
    times: int = 1, age: timedelta = timedelta(), refused: tuple[Candidate, ...] = (), **speeds: float
) -> Record:
    timings = []
    for name, speed in speeds.items():
        provider, precision, *lanes = name.split("_")
        timings.append(Timing(provider, precision, speed, int(lanes[0]) if lanes else None, times))
    return Record(tuple(timings), NOON - age, refused)


@pytest.mark.parametrize(
    ("kept", "tried"),
    [
        (record(cpu_fp32=20, openvino_int8=50, openvino_bf16=10), []),
        (record(cpu_fp32=20), [INT8, BF16]),
        (record(cpu_fp32=20, openvino_int8=50, refused=(BF16,)), []),
        (record(cpu_fp32=FAST_ENOUGH), []),
        (record(cpu_fp32=20, openvino_int8=50, openvino_int8_1=49, openvino_bf16=10), []),
        (record(cpu_fp32=48, openvino_int8=50, openvino_bf16=10), [INT8]),
        (record(cpu_fp32=48, openvino_int8=50, openvino_bf16=47), [INT8, BF16]),
        (record(times=3, cpu_fp32=48, openvino_int8=50, openvino_bf16=10), []),
        (
            record(age=timedelta(hours=25), cpu_fp32=20, openvino_int8=50, openvino_bf16=10),
            [INT8, FP32, BF16],
        ),
        (record(age=timedelta(hours=25), cpu_fp32=20, openvino_int8=50), [BF16, INT8, FP32]),
        (record(times=2, age=timedelta(days=29), cpu_fp32=20, openvino_int8=50, openvino_bf16=10), []),
    ],
)
def test_what_is_unknown_unconfirmed_or_near_is_tried(kept: Record, tried: list[Candidate]) -> None:
    assert not_settled(kept, [FP32, INT8, BF16], NOON) == tried


@pytest.mark.parametrize(
    ("age", "recent"), [(timedelta(), True), (KEPT + timedelta(days=1), False), (timedelta(days=-2), False)]
)
def test_a_record_counts_for_a_month(age: timedelta, recent: bool) -> None:
    assert is_recent(record(age=age, cpu_fp32=20), NOON) is recent


# Encoders that a run opens anyway take about 50 tiles/s, all others open in 0.7 s.
@pytest.mark.parametrize(
    ("run_tiles", "tried", "within"),
    [
        (100, [INT8, FP32], 1.7),
        (2000, [INT8, FP32], 1.7),
        (10_000, [INT8, FP32, BF16], 4.0),
        (None, [INT8, FP32, BF16], 9),
    ],
)
def test_trying_takes_a_second_or_a_share_of_a_long_run(
    run_tiles: int | None, tried: list[Candidate], within: float
) -> None:
    machine = Machine(opens_in=0.7, openvino_int8=0.02, cpu_fp32=0.02, openvino_bf16=0.03)
    timings = machine.measure(INT8, FP32, BF16, run_tiles=run_tiles)
    assert [t.name for t in timings] == tried
    opened_anyway = 0.7
    assert machine.now - opened_anyway <= within + 0.3, "its own tries take 0.3 s"
    assert fastest(timings).name in machine.sessions


@pytest.mark.parametrize(
    ("int8", "bf16", "order"),
    [
        ("AVX-512 VNNI", "AVX-512 BF16", [INT8, FP32, ("cpu", "int8", None), BF16]),
        ("AMX-INT8", "AMX-BF16", [INT8, FP32, BF16, ("cpu", "int8", None)]),
        ("AVX2", None, [FP32, ("cpu", "int8", None), BF16, INT8]),
    ],
)
def test_what_is_probably_the_fastest_is_tried_first(
    int8: str, bf16: str | None, order: list[Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = {INT8[:2]: int8, BF16[:2]: bf16, ("cpu", "int8"): int8}
    monkeypatch.setattr(encoder_candidates, "instructions_of", lambda *name: sets.get(name, ""))
    names = [FP32[:2], ("cpu", "int8"), BF16[:2], INT8[:2]]
    assert expected_order(names) == order
    assert expected_order([("cuda", "fp32"), ("cuda", "fp16")])[0] == ("cuda", "fp32", None)


def test_a_long_run_tries_what_a_short_one_left(
    two_precisions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Candidate]] = []

    def fake(names: list[Candidate], trial: Trial, *rest: Any) -> tuple[list[Timing], list[Candidate]]:
        asked.append(names)
        return [
            timing(name, 2.0 if name == INT8 else 1.0) for name in names[: 1 if trial.run_tiles == 100 else 9]
        ], []

    monkeypatch.setattr(encoder_choice, "measure", fake)
    monkeypatch.setattr(encoder_choice, "candidates", lambda *args: [FP32[:2], INT8[:2]])
    monkeypatch.setattr(encoder_choice, "expected_order", lambda names: [INT8, FP32])
    bundle, request = open_bundle(two_precisions), ChoiceRequest("auto", "auto", 16, 2)
    for run_tiles in (100, 100, 1_000, 1_000):
        choose_encoder(bundle, request, no_session, lambda text: None, {}, run_tiles=run_tiles)
        assert (known_choice(bundle, request) is None) == (run_tiles == 100)
    assert asked == [[INT8, FP32], [INT8, FP32]], "the second and the last run knew enough"


def test_a_large_encoder_in_a_short_run_is_not_compared() -> None:
    machine = Machine(openvino_int8=0.8, cpu_fp32=1.5)
    assert [t.name for t in machine.measure(INT8, FP32, run_tiles=100)] == [INT8]
    assert machine.calls == {"openvino_int8": 1, "cpu_fp32": 0}
    long_enough = int((1 + 2 * 2) * 2 / LIMIT_SHARE)
    assert is_worth_trying(2, 1.0, long_enough) and not is_worth_trying(2, 1.0, long_enough - 50)


def test_a_slow_session_is_outdone_by_the_next() -> None:
    """While int8 was slow for seconds on end, fp32 won by little; the next run measures again."""
    slow = record(cpu_fp32=40, openvino_int8=39)
    assert fastest(slow.timings).name == FP32 and not_settled(slow, [FP32, INT8], NOON) == [INT8]
    again = record(cpu_fp32=38, openvino_int8=90).merged(slow)
    assert fastest(again.timings).name == INT8 and not not_settled(again, [FP32, INT8], NOON)
    assert {t.name: (t.tiles_per_second, t.times) for t in again.timings} == {FP32: (40, 2), INT8: (90, 2)}


def test_a_machine_that_lied_is_asked_again_the_next_day(
    two_precisions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the choice was made, something else held up every try in int8."""
    spoken: list[dict[Candidate, float]] = [
        {FP32: 20.0, INT8: 9.0},
        {FP32: 19.0, INT8: 50.0},
        {FP32: 20.0, INT8: 9.0},
    ]
    asked: list[float] = []

    def fake(names: Sequence[Candidate], *rest: Any) -> tuple[list[Timing], list[Candidate]]:
        asked.append(days)
        return [timing(name, spoken[len(asked) - 1][name]) for name in names], []

    monkeypatch.setattr(encoder_choice, "measure", fake)
    monkeypatch.setattr(encoder_choice, "candidates", lambda *args: [FP32[:2], INT8[:2]])
    bundle, request = open_bundle(two_precisions), ChoiceRequest("auto", "auto", 16, 2)
    chosen = {}
    for days in (0.0, 0.9, 1.1, 2.0, 30.0, 40.0):
        clock = partial(NOON.__add__, timedelta(days=days))
        chosen[days] = choose_encoder(
            bundle, request, no_session, lambda text: None, {}, clock=clock
        ).precision
    assert asked == [0.0, 1.1, 40.0]
    assert chosen == {0.0: "fp32", 0.9: "fp32", 1.1: "int8", 2.0: "int8", 30.0: "int8", 40.0: "fp32"}


def no_session(name: Candidate) -> Any:
    raise ResourceError("it is not here")


KEY = {"bundle": "b", "threads": 2}


def test_a_record_is_kept_for_this_user_alone(own_cache: Path) -> None:
    kept = record(2, refused=(BF16,), cpu_fp32=20.5, openvino_int8=50, openvino_int8_4=55)
    assert read_record(KEY) is None and store_record(KEY, kept)
    assert read_record(KEY) == kept and read_record({**KEY, "threads": 4}) is None
    for path in (own_cache, record_path(KEY).parent):
        assert path.stat().st_mode & 0o777 == 0o700
    record_path(KEY).chmod(0o666)
    assert read_record(KEY) is None, "others may have written it"


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other/1"},
        {"key": {}},
        {"timings": []},
        {"timings": [{"provider": "warp", "precision": "fp32", "tiles_per_second": 1}]},
        {"timings": [{"provider": "cpu", "precision": "fp32", "tiles_per_second": -1}]},
        {"timings": [{"provider": "cpu", "precision": "fp32", "tiles_per_second": "1"}]},
        {"timings": [{"provider": "cpu", "precision": "fp32", "tiles_per_second": 1, "lanes": 0}]},
        {"timings": [{"provider": "cpu", "precision": "fp32", "tiles_per_second": 1, "lanes": "2"}]},
        {"measured": "2026-06-01T12:00:00"},
        {"measured": "soon"},
        {"timings": [{"provider": "cpu", "precision": "fp32", "tiles_per_second": 1, "times": 0}]},
        {"refused": None},
        {"refused": [["cpu"]]},
    ],
)
def test_a_damaged_record_counts_as_none(change: dict[str, Any]) -> None:
    store_record(KEY, record(cpu_fp32=20))
    content = json.loads(record_path(KEY).read_text())
    record_path(KEY).write_text(json.dumps({**content, **change}))
    assert read_record(KEY) is None
    record_path(KEY).write_bytes(b"{" * 9)
    assert read_record(KEY) is None


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCLST_CACHE", "/proc/no/such/folder")
    assert not store_record(KEY, record(cpu_fp32=20))


# ---------------------------------------------------------------------------------------------- bundles


@pytest.fixture
def two_precisions(small_bundle: Path, tmp_path: Path) -> Path:
    """The small bundle that also says to be in int8."""
    out = tmp_path / "mclst-bundle"
    shutil.copytree(small_bundle, out)
    content = (out / "encoder.onnx").read_bytes()
    (out / "encoder.int8.onnx").write_bytes(content)
    manifest = json.loads((out / "manifest.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"]["encoder.int8.onnx"] = {"bytes": len(content), "sha256": digest}
    parity = b'{"precisions": {"int8": {"expression": {"pearson_per_gene_mean": 0.9875}}}}'
    (out / "parity.json").write_bytes(parity)
    manifest["files"]["parity.json"] = {"bytes": len(parity), "sha256": hashlib.sha256(parity).hexdigest()}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def every_instruction(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (encoder_choice, encoder_candidates):
        monkeypatch.setattr(module, "instructions_of", lambda provider, precision: "AVX")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[Candidate]]:
    """What was measured, each time; int8 by ONNX Runtime is said to be the fastest."""
    calls: list[list[Candidate]] = []

    def fake(names: list[Candidate], trial: Trial, *rest: Any) -> tuple[list[Timing], list[Candidate]]:
        calls.append(names)
        for name in names:
            session = trial.open_one(name)
            assert session is not None and len(session.encode(trial.tiles)) == len(trial.tiles)
        return [timing(name, 30.0 if name[1] == "int8" else 10.0) for name in names], []

    monkeypatch.setattr(encoder_choice, "measure", fake)
    every_instruction(monkeypatch)
    return calls


def infer(small: Small, bundle: Path, out: Path, *words: str) -> Any:
    arguments = [small.slide, "--spots", small.spots, "--bundle", bundle, "--out", out, "--no-html"]
    done = CliRunner().invoke(main, [*map(str, arguments), "--no-picture", "--provider", "cpu", *words])
    assert done.exit_code == 0, done.output
    return done


def test_the_first_run_measures_and_the_next_ones_know(
    small: Small, two_precisions: Path, tmp_path: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = infer(small, two_precisions, tmp_path / "a.h5ad")
    assert (
        measured == [[("cpu", "fp32", None), ("cpu", "int8", None)]]
        and "trying which provider" in first.stderr
    )
    said = " ".join(first.stderr.split())
    assert "chosen cpu int8, 3.0 times as fast as fp32 (measured here," in said
    assert "r 0.9875 per gene with the checkpoint's expression; --precision fp32 for its digits" in said
    made_by = anndata.read_h5ad(tmp_path / "a.h5ad").uns["mclst"]
    assert (made_by["provider"], made_by["settings"]["precision"]) == ("cpu", "int8")
    assert made_by["choice"]["tiles_per_second"] == {"cpu fp32": 10.0, "cpu int8": 30.0}
    report = json.loads((tmp_path / "a.run.json").read_text())
    assert (report["run"]["precision"], report["run"]["times_fp32"]) == ("int8", 3.0)
    monkeypatch.setattr(encoder_candidates, "_is_here", lambda provider: provider == "cpu")
    infer(small, two_precisions, tmp_path / "c.h5ad", "--provider", "auto")
    listed = CliRunner().invoke(main, ["--list-providers", "--bundle", str(two_precisions)])
    table = [" ".join(line.split()) for line in listed.output.splitlines()]
    assert "fp32 by AVX, in the bundle, 10.0 tiles/s" in table and "bf16 by AVX, not in the bundle" in table
    assert "int8 by AVX, in the bundle, 30.0 tiles/s" in table
    again = infer(small, two_precisions, tmp_path / "b.h5ad", "-v")
    phases = next(line for line in again.stderr.splitlines() if line.split()[:1] == ["seconds"])
    assert phases.replace(",", "").split()[1::2] == ["start", "open", "stream", "publish"]
    assert len(measured) == 1 and "encoder in int8" in again.stderr and "trying" not in again.stderr


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        (("--precision", "fp32"), "fp32"),
        (("--precision", "int8"), "int8"),
        (("--memory-budget", "64GB"), "fp32"),
        (("--provider", "auto", "--precision", "fp32"), "fp32"),
    ],
)
def test_what_is_named_or_must_save_memory_is_not_measured(
    small: Small,
    two_precisions: Path,
    tmp_path: Path,
    measured: list[Any],
    words: tuple[str, ...],
    precision: str,
) -> None:
    done = infer(small, two_precisions, tmp_path / "a.h5ad", *words)
    assert not measured and f"encoder in {precision}" in done.stderr and "chosen" not in done.stderr


def test_a_bundle_in_fp32_alone_runs_as_it_did(
    small: Small, small_bundle: Path, tmp_path: Path, measured: list[Any], own_cache: Path
) -> None:
    done = infer(small, small_bundle, tmp_path / "a.h5ad", "--provider", "auto")
    assert not measured and "cpu, encoder in fp32" in done.stderr and not own_cache.exists()


def test_a_stopped_run_keeps_its_precision(
    small: Small, two_precisions: Path, tmp_path: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows were computed in fp32; since then int8 has been found to be faster."""
    from mclst.runtime.run import predict

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "publish", stop)
    arguments = [
        small.slide,
        "--spots",
        small.spots,
        "--bundle",
        two_precisions,
        "--out",
        tmp_path / "a.h5ad",
    ]
    words = [*map(str, arguments), "--no-html", "--no-picture", "--provider", "cpu"]
    assert CliRunner().invoke(main, [*words, "--precision", "fp32"]).exit_code == 130
    monkeypatch.undo()
    monkeypatch.setattr(encoder_choice, "measure", lambda *args: pytest.fail("it was measured"))
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0 and "resuming a stopped run" in done.stderr, done.output
    assert anndata.read_h5ad(tmp_path / "a.h5ad").uns["mclst"]["settings"]["precision"] == "fp32"


@pytest.mark.parametrize("words", [(), ("--precision", "int8")])
def test_lanes_that_were_chosen_are_recorded_and_kept(
    small: Small,
    two_precisions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    """The stopped run's are, even where the next run names all else and would take a lane per core."""
    from mclst.runtime.run import predict

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    timings = [Timing("cpu", "fp32", 10.0), Timing("cpu", "int8", 30.0), Timing("cpu", "int8", 40.0, 1)]
    opened: list[int | None] = []

    def opening(*args: Any, lanes: int | None = None, **kwargs: Any) -> Any:
        opened.append(lanes)
        return OnnxSession(*args, lanes=lanes, **kwargs)

    monkeypatch.setattr(encoder_choice, "measure", lambda *args: (timings, []))
    every_instruction(monkeypatch)
    monkeypatch.setattr(providers, "OnnxSession", opening)
    arguments = [small.slide, "--spots", small.spots, "--bundle", two_precisions, "--no-html", "--no-picture"]
    command = [*map(str, arguments), "--out", str(tmp_path / "a.h5ad"), "--provider", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(predict, "publish", stop)
        assert CliRunner().invoke(main, command).exit_code == 130
    assert opened == [1]
    done = CliRunner().invoke(main, [*command, *words])
    assert done.exit_code == 0 and "resuming a stopped run" in done.stderr, done.output
    assert opened[-1] == 1
    assert anndata.read_h5ad(tmp_path / "a.h5ad").uns["mclst"]["settings"]["lanes"] == 1


def test_a_cohort_chooses_once(
    small: Small, two_precisions: Path, tmp_path: Path, measured: list[Any], own_cache: Path
) -> None:
    table = tmp_path / "slides.csv"
    rows = [f"{small.slide},{small.spots},{name}" for name in ("one", "two", "three")]
    table.write_text("\n".join(["slide,spots,name", *rows]) + "\n")
    words = ["--slides", table, "--bundle", two_precisions, "--out", tmp_path / "maps", "--provider", "cpu"]
    shared: list[str] = []
    done = CliRunner().invoke(main, [*map(str, words), "--no-html", "--no-picture"])
    assert done.exit_code == 0 and len(measured) == 1, done.output
    for name in ("one", "two", "three"):
        shared.append(json.loads((tmp_path / "maps" / f"{name}.run.json").read_text())["run"]["precision"])
    assert shared == ["int8"] * 3
    shutil.rmtree(own_cache)
    again = CliRunner().invoke(main, [*map(str, words), "--no-html", "--no-picture"])
    assert again.exit_code == 0 and len(measured) == 1, "finished maps are not made again"


# ---------------------------------------------------------------------------------------------- devices

XEON = "processor\t: 0\nmodel name\t: A Xeon\nflags\t\t: sse2 avx2 avx512bw avx512_vnni avx512_bf16\n"
XEON_AMX = XEON.replace("avx512_bf16", "avx512_bf16 amx_bf16 amx_int8")
RYZEN = "model name\t: A Ryzen\nflags\t\t: sse2 avx2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp\n"


@pytest.mark.parametrize(
    ("cpuinfo", "openvino", "cpu"),
    [
        (XEON, {"bf16": "AVX-512 BF16", "int8": "AVX-512 VNNI"}, {"int8": "AVX-512 VNNI"}),
        (XEON_AMX, {"bf16": "AMX-BF16", "int8": "AMX-INT8"}, {"int8": "AVX-512 VNNI"}),
        (RYZEN, {"int8": "AVX2"}, {}),
        (ARM, {"int8": "dot product"}, {"fp16": "NEON fp16", "int8": "dot product"}),
    ],
)
def test_instruction_sets_are_read_from_the_kernel(
    cpuinfo: str,
    openvino: dict[str, str],
    cpu: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(instruction_sets, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    instruction_sets.processor.cache_clear()
    try:
        for provider, expected in (("openvino", openvino), ("cpu", cpu)):
            sets = {p: instruction_sets.instructions_of(provider, p) for p in PRECISIONS}
            assert {p: name for p, name in sets.items() if name is not None} == {"fp32": "", **expected}
        assert instruction_sets.processor_id() != f"{instruction_sets.processor()[0]}, features "
    finally:
        instruction_sets.processor.cache_clear()


def test_beside_a_gpu_the_processor_is_not_tried(
    two_precisions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Device:
        gpu = type("Gpu", (), {"compute_capability": "8.6"})()

    monkeypatch.setattr(encoder_candidates, "CudaDevice", Device)
    monkeypatch.setattr(
        encoder_candidates, "_is_here", lambda provider: provider in ("cuda", "cpu", "openvino")
    )
    bundle, request = open_bundle(two_precisions), ChoiceRequest("auto", "auto", 16, 2)
    names = candidates(bundle, ("fp32", "fp16", "bf16", "int8"), request)
    assert names == [("cuda", "fp32"), ("cuda", "fp16")]
    Device.gpu.compute_capability = "6.1"  # type: ignore[attr-defined]
    assert candidates(bundle, ("fp32", "fp16"), request) == [("cuda", "fp32")]


def test_candidates_that_do_not_open_are_left_out(
    two_precisions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_choice, "candidates", lambda *args: [("cpu", "fp32"), ("openvino", "int8")])

    request = ChoiceRequest("auto", "auto", 16, 2)
    choice = choose_encoder(open_bundle(two_precisions), request, no_session, lambda text: None, {})
    assert choice == EncoderChoice("auto", "fp32"), "opening it then says why"
    assert encoder_timings.FORMAT.endswith("/3")


def test_without_a_driver_no_binding_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def imported() -> None:
        raise AssertionError("it takes a twentieth of a second")

    monkeypatch.setattr(encoder_candidates, "driver_is_installed", lambda: False)
    monkeypatch.setattr(encoder_candidates, "CudaDevice", imported)
    assert encoder_candidates.runs_on_cpu("auto")


def test_a_graph_is_verified_when_it_is_asked_for(two_precisions: Path) -> None:
    damaged = two_precisions / "encoder.int8.onnx"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(BundleError, match="int8"):
        open_bundle(two_precisions)
    bundle = open_bundle(two_precisions, verify_graphs=False)
    assert bundle.encoder("fp32") == two_precisions / "encoder.onnx"
    for _ in range(2):
        with pytest.raises(BundleError, match=r"encoder\.int8\.onnx is not the file that was exported"):
            bundle.encoder("int8")
    request = ChoiceRequest("cpu", "auto", 16, 2)
    with pytest.raises(BundleError, match="int8"):  # nor is it left out of what is measured
        choose_encoder(bundle, request, no_session, lambda text: None, {})
