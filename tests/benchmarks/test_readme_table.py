"""The README's tables of speed: what stands there is what the committed runs say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mclst.benchmarks.reporting import readme_table
from mclst.benchmarks.reporting.readme_table import NOT_MEASURED, ON_GPU, tables, written

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_says_what_the_committed_runs_say() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme == written(readme, ROOT / "benchmarks" / "results")
    assert _measured_on_a_gpu() or readme.count(f"| {ON_GPU} | {NOT_MEASURED} |") == 2


def _measured_on_a_gpu() -> bool:
    told = [json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")]
    return any(document.get("schema") == "mclst-gpu-check/1" for document in told)


def a_run(name: str, ours: bool, provider: str, seconds: list[float]) -> dict[str, Any]:
    rates = 187 / np.array(seconds)
    return {
        "name": name,
        "ours": ours,
        "provider": provider,
        "tiles_per_s": {
            "median": float(np.median(rates)),
            "median_low95": rates.min(),
            "median_high95": rates.max(),
        },
        "encoder_of_peak": 0.5 if ours else None,
        "equal_to_first": {"pearson": 0.99906 if ours else None},
        "against_truth": {"pcc_acg": 0.2571} if ours else None,
        "samples": {"wall_s": seconds},
    }


def a_document(gpu: str | None, provider: str) -> dict[str, Any]:
    return {
        "schema": "mclst-bench-end-to-end/1",
        "machine": {"cpu": "Xeon", "gpu": gpu},
        "settings": {"threads": 2},
        "verdict": "quiet",
        "bundle": {"encoder": "densenet121"},
        "slide": {"name": "C4.jpg"},
        "result": {
            "tiles": 187,
            "contenders": [
                a_run("mclst ours fp32", True, provider, [5.0, 4.0, 6.0]),
                a_run("published notebook", False, "cpu", [10.0, 10.0, 9.0]),
            ],
        },
    }


def test_a_run_is_a_table_and_a_gpu_without_one_is_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(a_document(None, "cpu")))
    told = tables(tmp_path)
    assert (
        "densenet121, 187 tiles of C4.jpg; Xeon, 2 threads, quiet at the start (`benchmarks/results/run.json`):"
        in told
    )
    assert "| mclst ours fp32 | 37.4 (31.2 – 46.8) | 2.00 | 50 % | 0.99906 | 0.2571 |" in told
    assert "| published notebook | 18.7 (18.7 – 20.8) | 1.00 | – | – | – |" in told
    assert told.count(f"| {ON_GPU} | {NOT_MEASURED} |") == 2
    assert told.count(NOT_MEASURED) == 3  # and no run of the encoder alone


def test_runs_inside_a_gpu_check_are_found(tmp_path: Path) -> None:
    steps = [{"document": None}, {"document": a_document("H200, 580.1", "tensorrt")}]
    (tmp_path / "gpu-check.json").write_text(json.dumps({"schema": "mclst-gpu-check/1", "steps": steps}))
    (tmp_path / "other.json").write_text(json.dumps({"schema": "mclst-bench-tiles/1"}))
    told = tables(tmp_path)
    assert "2 threads, H200, 580.1, quiet" in told and "gpu-check.json" in told
    assert told.count(NOT_MEASURED) == 2  # of the encoder alone


def test_every_row_has_as_many_cells_as_its_head(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(a_document(None, "cpu")))
    lines = [line for line in tables(tmp_path).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {7, 6}


def test_only_what_stands_between_the_marks_is_made_anew(tmp_path: Path) -> None:
    readme = f"before\n{readme_table.BEGIN}\nold\n{readme_table.END}\nafter\n"
    found = written(readme, tmp_path)
    assert found.startswith("before\n") and found.endswith("\nafter\n") and "old" not in found
    assert written(found, tmp_path) == found
    with pytest.raises(ValueError, match="needs one"):
        written("no marks", tmp_path)


def test_what_the_docs_say_of_section_c4_is_what_was_measured() -> None:
    told = {
        name: json.loads((ROOT / "benchmarks" / "results" / f"{name}-c4-cpu.json").read_text())
        for name in ("end-to-end", "latency")
    }
    text = " ".join((ROOT / "docs" / "benchmarks.md").read_text().split())
    runs = {entry["name"]: entry for entry in told["end-to-end"]["result"]["contenders"]}
    ours, fast = runs["mclst cpu fp32"], runs["mclst openvino bf16"]
    times = {
        (name, what): np.median(
            np.divide(runs["published notebook"]["samples"][what], runs[name]["samples"][what])
        )
        for name in (ours["name"], fast["name"])
        for what in ("wall_s", "stream_s")
    }
    assert f"`openvino bf16` takes it, {times[fast['name'], 'wall_s']:.2f} times" in text
    assert f"PCC {fast['against_truth']['pcc_acg']:.4f} where" in text
    assert f"r {fast['equal_to_first']['pearson']:.5f} to fp32" in text
    assert f"`cpu` is {times[ours['name'], 'wall_s']:.2f} times as fast" in text
    assert f"not met**: {times[ours['name'], 'stream_s']:.2f} from the first tile" in text
    assert f"{ours['encoder_of_peak']:.0%}".replace("%", " % of this machine's") in text
    ratios = {
        (of_batch["batch"], r["name"]): r["latency_to_first"]
        for of_batch in told["latency"]["batches"]
        for r in of_batch["results"]
    }
    for name, how in (
        ("ONNX Runtime fp32", "takes {:.2f}, {:.2f} and {:.2f} times"),
        ("torch.compile", "{:.2f}, {:.2f} and {:.2f}"),
    ):
        assert how.format(*(ratios[batch, name] for batch in (8, 16, 64))) in text
    assert f"ONNX Runtime takes {ratios[1, 'ONNX Runtime fp32']:.2f} of its time" in text
    fp32 = [name for _, name in ratios if name.endswith("fp32") or name.startswith("torch")]
    assert all(ratios[batch, name] >= 1 for batch in (8, 16, 64) for name in fp32)
    cosine = told["latency"]["agreement"]["contenders"]["mclst openvino bf16"]["cosine_min"]
    assert f"least cosine to the checkpoint is {cosine:.5f}" in text
