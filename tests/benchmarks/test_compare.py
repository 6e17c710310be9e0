"""`mclst-bench compare` on simulated noise: it reports true regressions, and only those."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mclst.benchmarks.cli import main
from mclst.benchmarks.reporting.compare import (
    NotComparable,
    compare_documents,
    compare_samples,
    environment_differences,
)


def noisy(rng: np.random.Generator, median: float, n: int) -> list[float]:
    """Rounds with a skewed scatter of a few percent, and now and then a much slower round."""
    values = median * rng.lognormal(0, 0.03, n)
    return list(np.where(rng.random(n) < 0.05, values * rng.uniform(1.2, 2, n), values))


def called_slower(slowdown: float, tolerance: float, rounds: int, trials: int = 400) -> float:
    rng = np.random.default_rng(11)
    slower = [
        compare_samples("x", noisy(rng, 1.0, rounds), noisy(rng, slowdown, rounds), seed=t).slower(tolerance)
        for t in range(trials)
    ]
    return float(np.mean(slower))


def test_the_same_speed_is_not_called_slower() -> None:
    assert called_slower(1.0, 0.05, rounds=7) < 0.025
    assert called_slower(0.9, 0.05, rounds=7) == 0


def test_a_real_slowdown_is_found() -> None:
    assert called_slower(1.2, 0.05, rounds=7) > 0.97
    assert called_slower(1.03, 0.05, rounds=9) < 0.2


def test_the_interval_holds_the_true_ratio() -> None:
    rng, covered = np.random.default_rng(3), 0
    for t in range(400):
        change = compare_samples("x", noisy(rng, 2.0, 15), noisy(rng, 3.0, 15), seed=t)
        covered += change.low95 <= 1.5 <= change.high95
    assert covered / 400 > 0.9


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(NotComparable, match="has 2 rounds; 3 are needed"):
        compare_samples("x", [1.0, 1.0], [1.0, 1.0, 1.0])


# --- documents and the command
# ------------------------------------------------------------------------------------


def document(times: dict[str, list[float]], schema: str = "mclst-bench-end-to-end/1") -> dict[str, Any]:
    entries = [{"name": name, "samples": {"wall_s": samples}} for name, samples in times.items()]
    return {
        "schema": schema,
        "machine": {"cpu": "A", "cores": 2, "gpu": None, "commit": "1", "versions": {"onnxruntime": "1.31"}},
        "settings": {"threads": 2},
        "bundle": {"sha256": "a"},
        "verdict": "quiet",
        "result": {"contenders": entries},
    }


def run(tmp_path: Path, before: object, after: object, *words: str) -> Result:
    for name, content in (("a.json", before), ("b.json", after)):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return CliRunner().invoke(main, ["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *words])


BASE = document({"mclst": [1.0, 1.01, 0.99, 1.0], "notebook": [3.0, 3.1, 2.9, 3.0]})


def test_a_regression_leaves_with_1_and_is_named(tmp_path: Path) -> None:
    worse = copy.deepcopy(BASE)
    worse["result"]["contenders"][0]["samples"]["wall_s"] = [1.2, 1.21, 1.19, 1.2]
    done = run(tmp_path, BASE, worse, "--json", "-")
    assert done.exit_code == 1, done.output
    report = json.loads(done.stdout)
    assert [(c["what"], c["slower"]) for c in report["changes"]] == [("mclst", True), ("notebook", False)]
    assert report["changes"][0]["ratio"] == pytest.approx(1.2)
    assert "1 of 2 are more than 5 % slower" in done.stderr
    assert run(tmp_path, BASE, worse, "--tolerance", "0.3").exit_code == 0
    assert run(tmp_path, BASE, worse, "--only", "notebook").exit_code == 0
    assert run(tmp_path, worse, BASE).exit_code == 0
    assert run(tmp_path, BASE, BASE, "-q").output == ""


def test_environment_differences_are_named(tmp_path: Path) -> None:
    other = copy.deepcopy(BASE)
    other["machine"] |= {"cpu": "B", "versions": {"onnxruntime": "1.32", "torch": "2"}}
    other["verdict"] = "busy"
    assert environment_differences(BASE, other) == [
        "processor: A → B", "onnxruntime: 1.31 → 1.32", "torch: None → 2",
        "the machine was busy in the second run",
    ]  # fmt: skip
    del other["result"]["contenders"][1]
    done = run(tmp_path, BASE, other)
    assert done.exit_code == 0 and "processor: A → B" in done.stderr
    assert "only in one of them: notebook" in done.stderr


def test_latency_and_retrieval_documents_are_read_too() -> None:
    result = {"name": "x", "samples": {"round_mean_s": [1.0] * 3, "query_s": []}}
    latency = {
        "schema": "mclst-bench-latency/1",
        "batches": [{"batch": 8, "results": [result]}],
        "offline": {"results": [{"name": "x", "samples": {"wall_s": [2.0] * 3}}]},
    }
    assert [c.what for c in compare_documents(latency, latency)[0]] == ["batch 8: x", "offline: x"]
    root = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    committed = json.loads((root / "retrieval-xeon-2-cores.json").read_text())
    changes, unmatched = compare_documents(committed, committed)
    assert changes and not unmatched and all(c.ratio == 1 and not c.slower(0) for c in changes)
    for path in root.glob("retrieval-*-n1e*.json"):
        few = json.loads(path.read_text())
        with pytest.raises(NotComparable, match="rounds; 3 are needed"):
            compare_documents(few, few)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (BASE, document({}, "mclst-bench-latency/1"), "same benchmark"),
        ({"schema": "other/1"}, {"schema": "other/1"}, "none of"),
        (BASE, document({"z": [1.0] * 3}), "share no contender"),
        (BASE, {"schema": "mclst-bench-end-to-end/1"}, "does not hold"),
        (BASE, "[1]", "no JSON object"),
        (BASE, "{", "not JSON"),
        (BASE, document({"mclst": [1.0]}), "rounds"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, before: object, after: object, says: str) -> None:
    done = run(tmp_path, before, after)
    assert done.exit_code == 4 and says in " ".join(done.output.split()) and "Traceback" not in done.output
    assert (
        CliRunner().invoke(main, ["compare", str(tmp_path / "a.json"), str(tmp_path / "no.json")]).exit_code
        == 4
    )


def test_whole_commands_are_compared_by_page_cache() -> None:
    def document(seconds: float) -> dict[str, Any]:
        contenders = [{"name": "mclst auto", "samples": {"wall_s": [seconds] * 3}}]
        return {"schema": "mclst-bench-command/1", "results": {"warm": {"contenders": contenders}}}

    (change,), alone = compare_documents(document(4.0), document(5.0))
    assert (change.what, change.ratio, alone) == ("page cache warm: mclst auto", 1.25, [])
    assert change.slower(0.05)
