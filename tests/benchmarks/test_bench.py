"""mclst-bench retrieval: timing, counted work, peers against the definition, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from mclst.benchmarks import cli
from mclst.benchmarks.harness import measure
from mclst.benchmarks.harness.measure import PeerUnavailable, Samples
from mclst.benchmarks.retrieval import cases, peers
from mclst.benchmarks.retrieval import measure as retrieval
from mclst.benchmarks.retrieval.cases import Case
from mclst.benchmarks.retrieval.peers import Peer
from mclst.benchmarks.retrieval.synthetic import Source
from mclst.benchmarks.roofline import peaks
from mclst.benchmarks.roofline.retrieval_bound import Peaks, Work, bound_s, retrieval_work
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.retriever import Retriever

PEAKS = Peaks(1e9, 1e9)
HOST_PEERS = [peer for peer in peers.PEERS if not any(w in peer.name for w in ("cuda", "gpu", "cuvs"))]


def tiny(distance: Any = "l2", k: int = 9) -> Case:
    spec = RetrievalSpec(k=k, rank="cosine", distance=distance)
    return Case("tiny", 60, 7, spec, d=16)


# --- timing
# ----------------------------------------------------------------------------------------------------


def test_contenders_take_turns_and_warm_up_is_not_counted() -> None:
    turns: list[str] = []
    timed = measure.time_interleaved(
        {name: lambda name=name: turns.append(name) for name in "abc"},  # type: ignore[misc]
        rounds=6,
        warm_up=2,
        on_round=lambda: turns.append("."),
    )
    assert turns[3::4] == ["."] * 8
    turns = [name for name in turns if name != "."]
    rounds = [turns[i : i + 3] for i in range(0, len(turns), 3)]
    assert len(rounds) == 8 and all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1
    assert all(len(timed.samples[name].wall_s) == len(timed.samples[name].cpu_s) == 6 for name in "abc")
    assert len(timed.load) == 6


def test_wall_time_counts_waiting_and_cpu_time_counts_work() -> None:
    clocks = {"wall": 0.0, "cpu": 0.0}

    def wait() -> None:
        clocks["wall"] += 4

    def work() -> None:
        clocks["wall"] += 1
        clocks["cpu"] += 2  # two threads

    timed = measure.time_interleaved(
        {"wait": wait, "work": work},
        rounds=3,
        wall_clock=lambda: clocks["wall"],
        cpu_clock=lambda: clocks["cpu"],
    )
    assert timed.samples == {"wait": Samples([4] * 3, [0] * 3), "work": Samples([1] * 3, [2] * 3)}


def test_spread_is_what_numpy_says() -> None:
    values = [3.0, 1.0, 2.0, 10.0, 2.5]
    got = measure.summarize(values)
    assert got["n"] == 5 and got["median"] == 2.5 and got["min"] == 1 and got["max"] == 10
    np.testing.assert_allclose([got["mean"], got["std"]], [np.mean(values), np.std(values, ddof=1)])
    assert 1 <= got["median_low95"] <= 2.5 <= got["median_high95"] <= 10
    alone = measure.summarize([4.0])
    assert alone["std"] == 0 and alone["median_low95"] == alone["median_high95"] == 4


def test_the_interval_of_the_median_holds_the_median_of_what_was_drawn_from() -> None:
    covered = 0
    for seed in range(60):
        drawn = np.random.default_rng(seed).exponential(size=25)
        low, high = measure.median_interval(drawn)
        covered += low <= np.log(2) <= high
    assert covered >= 52


def test_a_ratio_is_taken_within_rounds() -> None:
    # The machine is ten times slower in the second round; the ratio does not see it.
    assert measure.paired_ratio([4.0, 40.0, 4.2], [2.0, 20.0, 2.0]) == 2


# --- the limits
# ---------------------------------------------------------------------------------------------------


def test_work_is_counted_by_hand() -> None:
    work = retrieval_work(n=2, m=3, d=5, k=2, genes=4)
    products, distances, sums = 2 * (2 * 3 * 5), 3 * (2 * 2 * 5), 2 * (2 * 2 * 4)
    assert work.flops == products + distances + sums
    assert work.bytes == 4 * (3 * 5 + 3 * 4 + 2 * 5 + 2 * 4)


def test_the_bound_is_the_slower_of_computing_and_moving() -> None:
    assert bound_s(Work(flops=8e9, bytes=1e9), Peaks(1e9, 1e9)) == 8
    assert bound_s(Work(flops=1e9, bytes=8e9), Peaks(1e9, 2e9)) == 4


def test_peaks_are_of_a_plausible_machine() -> None:
    got = peaks.host_peaks(2, side=256, copy_bytes=8 << 20)
    assert 1e8 < got.flops_per_s < 1e15 and 1e8 < got.bytes_per_s < 1e14


def test_the_product_takes_as_many_threads_as_the_contenders(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --threads 1 a roofline of all cores would make every contender look half as good."""
    pools = pytest.importorskip("threadpoolctl")
    seen: list[set[int]] = []

    def take(function: Callable[[], object]) -> float:
        seen.append({pool["num_threads"] for pool in pools.threadpool_info() if pool["user_api"] == "blas"})
        return 1.0

    monkeypatch.setattr(peaks, "_best_seconds", take)
    with pools.threadpool_limits(2, user_api="blas"):
        peaks.host_peaks(1, side=8, copy_bytes=64)
    assert seen[0] == {1}


# --- the cases and the peers
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", cases.KINDS)
def test_data_is_the_same_for_the_same_seed(kind: str) -> None:
    case = tiny()
    first, second = Source(kind, case), Source(kind, case)
    np.testing.assert_array_equal(first.queries(8), second.queries(8))
    np.testing.assert_array_equal(first.bank().expression, second.bank().expression)
    assert (first.queries(8) != first.queries(8, block=1)).any()
    assert (first.queries(8) != Source(kind, case, seed=1).queries(8)).any()
    for array in (first.queries(8), first.bank().embedding, first.bank().expression):
        assert array.dtype == np.float32 and np.isfinite(array).all()


def test_contrastive_data_lies_in_few_directions_and_clustered_data_does_not() -> None:
    case = Case("wide", 2000, 1, RetrievalSpec(k=1))
    shares = {}
    for kind in cases.KINDS:
        centered = Source(kind, case).bank().embedding.astype(np.float64)
        variance = np.linalg.svd(centered - centered.mean(axis=0), compute_uv=False) ** 2
        shares[kind] = variance[:24].sum() / variance.sum()
    # Eleven directions part twelve clusters; the rest of the variance is the same in every direction.
    assert shares["clustered"] < 0.9 < shares["contrastive"]


@pytest.mark.parametrize("peer", HOST_PEERS, ids=lambda peer: peer.name)
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_every_peer_computes_the_same_retrieval(peer: Peer, distance: str) -> None:
    case = tiny(distance)
    source = Source("clustered", case)
    bank, queries = source.bank(), source.queries(33)
    expected = Retriever(bank, case.spec, "reference").aggregate(queries).expression
    got = peer.prepare(bank, case.spec, 1)(queries)
    assert got.dtype == np.float32 and got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_peers_of_a_gpu_say_why_they_are_absent() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    case = tiny()
    bank = Source("clustered", case).bank()
    for peer in peers.PEERS:
        if peer not in HOST_PEERS:
            with pytest.raises(PeerUnavailable, match=r"no CUDA device|not installed"):
                peer.prepare(bank, case.spec, 1)


# --- a measurement
# ------------------------------------------------------------------------------------------------


def run_tiny(n: int, chosen: list[Peer], providers: list[str], **options: Any) -> dict[str, Any]:
    return retrieval.measure(
        tiny(),
        "clustered",
        n=n,
        providers=providers,
        rounds=2,
        threads=1,
        peaks=PEAKS,
        peers=chosen,
        **options,
    )


def test_a_measurement_holds_its_samples_and_says_who_is_compared_with_whom() -> None:
    got = run_tiny(20, HOST_PEERS, ["faiss", "reference"])
    by_name = {entry["name"]: entry for entry in got["contenders"]}
    assert set(by_name) == {"mclst faiss", "mclst reference", *(peer.name for peer in HOST_PEERS)}
    assert by_name["mclst faiss"]["wall_to_ours"] == 1 and by_name["mclst reference"]["error"] == 0
    for entry in by_name.values():
        wall = entry["samples"]["wall_s"]
        assert len(wall) == 2 and entry["wall_s"]["median"] == np.median(wall)
        assert entry["error"] < 1e-4
        np.testing.assert_allclose(
            entry["fraction_of_bound"], got["bound_s"]["host"] / entry["wall_s"]["median"]
        )
    summary = got["summary"]
    assert summary["ours"] == "mclst faiss" and summary["best_library"] in by_name
    libraries = [by_name[p.name]["wall_to_ours"] for p in HOST_PEERS if p.name != "published loop"]
    assert summary["times_best_library"] == min(libraries)
    assert summary["times_published_loop"] == by_name["published loop"]["wall_to_ours"]
    json.dumps(got, allow_nan=False)


def test_a_peer_timed_with_fewer_queries_is_scaled() -> None:
    sizes: list[int] = []

    def prepare(bank: Any, spec: RetrievalSpec, threads: int) -> Any:
        run = HOST_PEERS[0].prepare(bank, spec, threads)
        return lambda queries: sizes.append(len(queries)) or run(queries)

    def timer(runs: Any, rounds: int, on_round: Any) -> measure.Rounds:
        for run in runs.values():
            run()
        seconds = {"few": 0.5, "mclst faiss": 1.0}
        return measure.Rounds({name: Samples([seconds[name]], [seconds[name]]) for name in runs}, [0.0])

    got = run_tiny(100, [Peer("few", prepare, max_queries=10)], ["faiss"], timer=timer)
    few = next(entry for entry in got["contenders"] if entry["name"] == "few")
    assert sizes[0] == 10 and few["timed_queries"] == 10
    assert few["wall_s"]["median"] == 5 and few["wall_to_ours"] == 5


def test_many_queries_are_streamed_in_blocks() -> None:
    blocks: list[int] = []
    retrieval.stream(
        lambda queries: blocks.append(len(queries)) or queries, np.zeros((20, 1), np.float32), 45, chunk=8
    )()
    assert sum(blocks) == 45 and max(blocks) == 8


def test_providers_that_do_not_run_here_are_named() -> None:
    got = run_tiny(5, [], ["faiss"])
    assert got["absent"] == [] and got["summary"]["best_library"] is None
    with pytest.raises(retrieval.NothingToMeasure, match="mclst cuda: "):
        run_tiny(5, [], ["cuda"])


# --- the command
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(peaks, "host_peaks", lambda threads: PEAKS)
    monkeypatch.setitem(cases.CASES, "her2st-l2", tiny())

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli.main, ["retrieval", *arguments])

    return run


def test_the_command_writes_json_and_a_picture(bench: Any, tmp_path: Path) -> None:
    saved, picture = tmp_path / "r.json", tmp_path / "r.png"
    short = [
        "--case",
        "her2st-l2",
        "--data",
        "clustered",
        "--n",
        "12",
        "--repeats",
        "2",
        "--providers",
        "faiss",
    ]
    done = bench(*short, "--json", str(saved), "--plot", str(picture))
    assert done.exit_code == 0, done.output
    assert done.stdout == "" and "mclst faiss" in done.stderr and "not run here" in done.stderr
    content = json.loads(saved.read_text())
    assert content["schema"] == "mclst-bench-retrieval/1" and content["settings"]["rounds"] == 2
    assert content["machine"]["cores"] >= 1 and content["verdict"] in ("quiet", "busy")
    assert content["results"][0]["shape"]["n"] == 12
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = bench(*short, "--json", str(saved))
    assert again.exit_code == 5 and "--overwrite" in again.stderr
    piped = bench(*short, "--no-peers", "--json", "-", "-q")
    assert piped.exit_code == 0 and piped.stderr == ""
    assert [c["name"] for c in json.loads(piped.stdout)["results"][0]["contenders"]] == ["mclst faiss"]


@pytest.mark.parametrize(
    "arguments",
    [["--providers", "gpu9"], ["--case", "tissue"], ["--n", "0"], ["--repeats", "0"], ["--data", "real"]],
)
def test_wrong_usage_leaves_with_2(bench: Any, arguments: list[str]) -> None:
    done = bench(*arguments)
    assert done.exit_code == 2 and "Traceback" not in done.output


def test_no_provider_that_runs_leaves_with_6(bench: Any) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    done = bench("--case", "her2st-l2", "--n", "5", "--repeats", "1", "--providers", "cuda")
    assert done.exit_code == 6 and "Error: mclst cuda: " in done.stderr


HEAVY = {"numpy", "pandas", "torch", "matplotlib", "h5py", "onnxruntime", "onnx", "scipy", "pydantic", "rich"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from mclst.benchmarks.cli import COMMANDS, main\n"
        "for name in ([], *([command] for command in COMMANDS)):\n"
        "    main([*name, '--help'], standalone_mode=False)\n"
        "    print(name, sorted(sys.modules), file=sys.stderr)\n"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = completed.stderr.splitlines()
    assert len(lines) == 1 + len(cli.COMMANDS)
    for line in lines:
        assert not [name for name in HEAVY if f"'{name}'" in line], line.split("]")[0]


def test_the_help_of_the_group_lists_every_command() -> None:
    done = CliRunner().invoke(cli.main, ["--help"])
    assert done.exit_code == 0 and all(name in done.output for name in cli.COMMANDS)
    for name in cli.COMMANDS:
        command = cli.main.get_command(click.Context(cli.main), name)
        assert command is not None and command.name == name
    assert CliRunner().invoke(cli.main, ["no-such"]).exit_code == 2


# --- what is committed
# --------------------------------------------------------------------------------------------

RESULTS = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "results").glob("retrieval-*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_figures_follow_from_their_samples(path: Path) -> None:
    content = json.loads(path.read_text())
    assert content["schema"] == "mclst-bench-retrieval/1"
    for result in content["results"]:
        by_name = {entry["name"]: entry for entry in result["contenders"]}
        ours = by_name[result["summary"]["ours"]]["samples"]["wall_s"]
        for entry in by_name.values():
            assert entry["wall_s"] == pytest.approx(measure.summarize(entry["samples"]["wall_s"]))
            assert entry["wall_to_ours"] == pytest.approx(
                measure.paired_ratio(entry["samples"]["wall_s"], ours)
            )


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_documented_table_is_the_committed_run(path: Path) -> None:
    text = (path.parents[2] / "docs" / "benchmarks" / "retrieval.md").read_text()
    assert path.name in text
    for result in json.loads(path.read_text())["results"]:
        mine = next(e for e in result["contenders"] if e["name"] == result["summary"]["ours"])
        summary = result["summary"]
        row = (
            f"| `{result['case']}` | {result['data']} | {1e3 * mine['wall_s']['median']:.0f} "
            f"| {1e3 * mine['cpu_s']['median']:.0f} | {summary['times_published_loop']:.1f} "
            f"| {summary['times_published_loop_cpu']:.1f} | {summary['times_best_library']:.2f} "
            f"| {summary['times_best_library_cpu']:.2f} | {summary['best_library']} |"
        )
        assert row in text
