"""Measured tables of docs/performance.md and docs/benchmarks/: they are those of the committed runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mclst.benchmarks.reporting.readme_table import (
    BLOCKS,
    COMMAND,
    END,
    NOT_MEASURED,
    ON_GPU,
    tables,
    update,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("file", BLOCKS)
def test_generated_tables_are_those_of_the_committed_runs(file: str) -> None:
    text = (ROOT / file).read_text()
    made = {name: make(ROOT / "benchmarks" / "results") for name, make in BLOCKS[file].items()}
    assert text == update(text, made), "run `python -m mclst.benchmarks.reporting.readme_table`"
    for table in made.values():
        for part in table.split("\n\n"):
            assert len({line.count("|") for line in part.splitlines() if line.startswith("|")}) <= 1


def test_what_has_not_run_on_a_gpu_is_said_to_be_missing() -> None:
    table = tables(ROOT / "benchmarks" / "results")
    assert _measured_on_a_gpu() or table.count(f"| {ON_GPU} | {NOT_MEASURED} |") == 2


def _measured_on_a_gpu() -> bool:
    documents = [json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")]
    return any(document.get("schema") == "mclst-gpu-check/1" for document in documents)


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


def test_a_run_is_a_table_and_a_missing_gpu_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(a_document(None, "cpu")))
    text = tables(tmp_path)
    assert (
        "densenet121, 187 tiles of C4.jpg; Xeon, 2 threads, quiet at the start "
        "(`benchmarks/results/run.json`):" in text
    )
    assert "| mclst ours fp32 | 37.4 (31.2 – 46.8) | 2.00 | 50 % | 0.99906 | 0.2571 |" in text
    assert "| published notebook | 18.7 (18.7 – 20.8) | 1.00 | – | – | – |" in text
    assert text.count(f"| {ON_GPU} | {NOT_MEASURED} |") == 2
    assert text.count(NOT_MEASURED) == 3  # and no run of the encoder alone


def test_whole_commands_are_a_table_with_either_page_cache(tmp_path: Path) -> None:
    def process(name: str, chosen: str, wall: list[float]) -> dict[str, Any]:
        spread = {"median": float(np.median(wall))}
        return {
            "name": name,
            "chosen": chosen,
            "wall_s": spread,
            "overhead_s": {"median": 1.5},
            "equal_to_first": {"pearson": 0.99906},
            "samples": {"wall_s": wall},
        }

    warm = [
        process("mclst auto", "openvino int8", [4.0, 5.0, 6.0]),
        process("published notebook", "", [20.0] * 3),
    ]
    document = {
        **a_document(None, "cpu"),
        "schema": "mclst-bench-command/1",
        "results": {
            "warm": {"tiles": 179, "contenders": warm},
            "cold": {"tiles": 179, "contenders": [process("mclst auto", "openvino int8", [7.0] * 3)]},
        },
    }
    del document["result"]
    (tmp_path / "command.json").write_text(json.dumps(document))
    text = tables(tmp_path)
    assert "densenet121, 179 tiles of C4.jpg; Xeon, 2 threads, quiet" in text
    assert "| mclst auto (openvino int8) | 5.00 | 7.00 | 1.50 | 4.00 | 0.99906 | – |" in text
    assert "| published notebook | 20.00 | – | 1.50 | 1.00 | 0.99906 | – |" in text


def test_runs_inside_a_gpu_check_are_found(tmp_path: Path) -> None:
    steps = [{"document": None}, {"document": a_document("H200, 580.1", "tensorrt")}]
    (tmp_path / "gpu-check.json").write_text(json.dumps({"schema": "mclst-gpu-check/1", "steps": steps}))
    (tmp_path / "other.json").write_text(json.dumps({"schema": "mclst-bench-tiles/1"}))
    text = tables(tmp_path)
    assert "2 threads, H200, 580.1, quiet" in text and "gpu-check.json" in text
    assert text.count(NOT_MEASURED) == 2  # of the encoder alone


def test_every_row_has_as_many_cells_as_its_head(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(a_document(None, "cpu")))
    lines = [line for line in tables(tmp_path).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {7, 6}


def test_only_the_text_between_the_marks_changes() -> None:
    blocks = {"one": "| 1 |", "two": "| 2 |"}
    text = "".join(f"before\n<!-- {name}: {COMMAND} -->\nold\n{END}\nafter\n" for name in blocks)
    updated = update(text, blocks)
    assert updated == text.replace("\nold\n", "\n\n| 1 |\n\n", 1).replace("\nold\n", "\n\n| 2 |\n\n")
    assert update(updated, blocks) == updated
    with pytest.raises(ValueError, match="needs"):
        update("no marks", blocks)
