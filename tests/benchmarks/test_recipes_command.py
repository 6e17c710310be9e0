"""mclst-bench recipes: results of several runs in one file, and TensorRT-RTX engines of a small encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner, Result
from torch import nn

from mclst.benchmarks.cli import main
from mclst.benchmarks.recipes import engines, measure
from mclst.benchmarks.reporting.recipe_tables import engine_table, measured_table
from mclst.export.onnx.graph import write_graph
from mclst.runtime.bundle.manifest import Preprocessing, Tile

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def run(*words: Any) -> Result:
    return CliRunner().invoke(main, ["recipes", *map(str, words)])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of full size take minutes, so each measurement is the number of those before it."""
    done: list[str] = []

    def measured(recipe: Any, batch: int, rounds: int, folder: Path) -> dict[str, Any]:
        done.append(recipe.name)
        numbers = dict.fromkeys(("export_seconds", "export_peak_mib", "run_peak_mib"), len(done))
        return {
            "name": recipe.name,
            "parameters": recipe.parameters,
            "graph_mib": 1,
            "relative_difference": 0.0,
            "tiles_per_second": float(len(done)),
            **numbers,
        }

    monkeypatch.setattr(measure, "measure_in_subprocess", measured)


def test_encoders_are_added_to_a_file_and_measured_again(counted: None, tmp_path: Path) -> None:
    out = tmp_path / "recipes-cpu.json"
    assert run("--recipe", "uni", "--append", "--json", out).exit_code == 2
    assert run("--recipe", "uni", "--recipe", "phikon", "--json", out).exit_code == 0
    assert run("--recipe", "conch", "--json", out).exit_code == 5
    assert run("--recipe", "conch", "--recipe", "uni", "--append", "--json", out).exit_code == 0
    results = json.loads(out.read_text())["results"]
    assert {item["name"]: item["tiles_per_second"] for item in results} == {"phikon": 2, "conch": 3, "uni": 4}
    assert all(item["measured"]["created"] and item["measured"]["commit"] for item in results)
    rows = [line.split(" | ")[0] for line in measured_table(tmp_path).splitlines()[4:]]
    assert rows == ["| Phikon", "| CONCH", "| UNI"], "by size"
    (tmp_path / "cut.json").write_text("{")
    refused = run("--recipe", "uni", "--append", "--json", tmp_path / "cut.json")
    assert refused.exit_code == 4 and "cut.json is not JSON" in refused.stderr
    refused = run("--recipe", "uni", "--rounds", "7", "--append", "--json", out)
    assert refused.exit_code == 4 and "results of another settings" in refused.stderr
    assert len(json.loads(out.read_text())["results"]) == 3


def test_a_vision_transformer_becomes_engines_for_two_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; install mclst[rtx]")

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = timm.create_model(
                "vit_tiny_patch16_224", depth=1, img_size=32, num_classes=0, reg_tokens=2
            )

        def encode_tiles(self, tiles: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.encoder(tiles)
            return out

    write_graph(
        Network().eval().requires_grad_(False), Tile(size_px=32), Preprocessing(), tmp_path / "encoder.onnx"
    )
    wrong = run("--recipe", "uni", "--target", "sm_1")
    assert wrong.exit_code == 6 and "not for sm_1" in wrong.stderr, "before anything is exported"
    # In processes of their own torch would be imported again.
    monkeypatch.setattr(
        engines, "call_in_subprocess", lambda function, *, task, advice, **arguments: function(**arguments)
    )
    whole, half = engines.build_engines("a small one", tmp_path, ("sm_86", "sm_89"), lambda engine: None)
    for built in (whole, half):
        assert built["targets"] == ["sm_86", "sm_89"] and built["engine_mib"] >= 0 and built["peak_mib"] > 0
    assert (whole["precision"], half["precision"]) == ("fp32", "fp16")
    assert "HALF" not in whole["layers"] and half["layers"]["HALF"] > 0 < half["layers"]["FLOAT"]


def test_the_committed_engines_are_for_both_targets() -> None:
    results = {
        item["name"]: item for item in json.loads((RESULTS / "recipes-cpu.json").read_text())["results"]
    }
    built = {name: item["engines"] for name, item in results.items() if "engines" in item}
    assert {"h0-mini", "uni"} <= built.keys()
    for engines_of in built.values():
        assert {(engine["precision"], *engine["targets"]) for engine in engines_of} == {
            ("fp32", "sm_86", "sm_89"),
            ("fp16", "sm_86", "sm_89"),
        }
    assert "sm_86 and sm_89" in engine_table(RESULTS)
