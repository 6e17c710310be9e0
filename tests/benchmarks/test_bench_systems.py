"""mclst-bench systems: rates of every part, memory in a process of its own, on small networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mclst.benchmarks.cli import main
from mclst.benchmarks.retrieval.cases import Case
from mclst.benchmarks.retrieval.synthetic import Source
from mclst.benchmarks.systems import exported_systems
from mclst.benchmarks.systems.commands import HEADS, SYSTEMS
from mclst.benchmarks.systems.exported_systems import PUBLISHED, Published
from mclst.benchmarks.systems.slide_memory import array_positions
from mclst.kernels.definition import reference
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.models.bleep import Bleep
from mclst.models.hist2st import Hist2St
from mclst.models.system import systems
from mclst.training.fitting.heads import COMPONENTS


def run(*words: Any) -> Result:
    return CliRunner().invoke(main, ["systems", *map(str, words)])


@pytest.fixture
def small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """BLEEP and Hist2ST in sizes for a test."""
    small = {
        "bleep": Published(
            lambda: Bleep("resnet18", 5, projection_dim=8),
            Case("small", 60, 5, RetrievalSpec(k=3, weighting="uniform"), d=8),
            {"tile": {"size_px": 32}},
        ),
        "hist2st": Published(
            lambda: Hist2St(5, tile_px=28, channels=16, heads=4, head_dim=8, depths=(1, 1, 2)),
            settings={"tile": {"size_px": 28}, "heads": 4},
        ),
    }
    monkeypatch.setattr(exported_systems, "PUBLISHED", small)


def test_rates_and_memory(small_ones: None, tmp_path: Path) -> None:
    words = [
        "--system",
        "bleep",
        "--system",
        "hist2st",
        "--spots",
        "9",
        "--batch-size",
        "4",
        "--repeats",
        "2",
    ]
    done = run(*words, "--provider", "cpu", "--memory", "300", "--json", tmp_path / "s.json")
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["settings"]["weights"] == "random" and len(document["load"]) == 2
    bleep, hist2st = (document["systems"][name] for name in ("bleep", "hist2st"))
    for system in (bleep, hist2st):
        rate = system["tiles_per_second"]
        assert rate["tiles"]["n"] == 2 and 0 < rate["all"]["median"] < rate["tiles"]["max"]
    assert bleep["after"].startswith("retrieval on") and "memory" not in bleep
    assert hist2st["after"] == "whole slide on cpu" and hist2st["kind"] == "slide"
    memory = hist2st["memory"]
    assert memory["spots"] == 300 and memory["peak_mib"] >= memory["open_mib"] > 20
    assert "bleep" in done.stderr and "MiB at the peak over 300 spots" in done.stderr
    assert run(*words, "--json", tmp_path / "s.json").exit_code == 5


def test_it_measures_all_systems_in_their_published_sizes() -> None:
    assert set(SYSTEMS) == set(systems()) - {"fitted", "fitted-retrieval"}
    assert {*SYSTEMS, *HEADS} == set(PUBLISHED)
    for name, published in PUBLISHED.items():
        kind = systems()[published.system or name].kind
        assert (published.bank is not None) == (kind == "retrieval")
    assert run("--system", "alexnet").exit_code == 2


def test_a_blend_adds_its_neighbors_residuals_to_what_the_network_predicts(tmp_path: Path) -> None:
    blend = PUBLISHED["blend"]
    assert blend.bank is not None
    small = replace(blend, bank=replace(blend.bank, m=60))
    system = exported_systems.ExportedSystem("blend", small, tmp_path / "blend", "cpu", 2)
    tiles = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    encoded = system.encode(tiles, 2)
    assert encoded.shape == (3, COMPONENTS + 785)
    assert small.bank is not None
    bank = Source("contrastive", small.bank).bank()
    near = reference.aggregate(
        encoded[:, :COMPONENTS].copy(), bank.embedding, bank.expression, small.bank.spec
    )
    np.testing.assert_allclose(
        system.predict_expression(encoded), near.expression + encoded[:, COMPONENTS:], rtol=0, atol=1e-5
    )


def test_positions_stay_below_the_limit() -> None:
    positions = array_positions(200, 8)
    assert positions.min() == 0 and positions.max() == 7 and len(np.unique(positions, axis=0)) == 64


def test_the_docs_have_the_committed_rates() -> None:
    root = Path(__file__).resolve().parents[2]
    run = json.loads((root / "benchmarks" / "results" / "systems-cpu.json").read_text())
    rows = [
        line.split(" | ") for line in (root / "docs" / "systems.md").read_text().splitlines() if " px" in line
    ]
    documented = {
        row[0].strip("| ").lstrip("[").split("]")[0]: row[-1].strip(" |") for row in rows if len(row) == 7
    }
    measured = {
        name: f"{of['tiles_per_second']['all']['median']:,.0f}" for name, of in run["systems"].items()
    }
    assert {name.lower().replace("-", ""): rate for name, rate in documented.items()} == measured


def test_the_documented_memory_is_the_committed_run() -> None:
    root = Path(__file__).resolve().parents[2]
    run = json.loads((root / "benchmarks" / "results" / "systems-memory-cpu.json").read_text())
    text = (root / "docs" / "benchmarks" / "systems.md").read_text()
    documented = {
        name: run["systems"][name.lower()]["memory"] for name in ("HisToGene", "Hist2ST", "THItoGene")
    }
    for name, memory in documented.items():
        assert memory["spots"] == 30000
        assert f"| {name} | {memory['peak_mib']:,} | {memory['open_mib']:,} |" in text
