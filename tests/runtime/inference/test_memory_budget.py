"""Batch and ring within a memory budget: found by trying, against a device whose memory is a formula; and for
real.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_model import Small

from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.encoder.cpu_stages import CpuStages
from mclst.runtime.errors import ResourceError
from mclst.runtime.expression_map.parts import SlidePart
from mclst.runtime.inference import loaded_model as opened
from mclst.runtime.inference.memory_budget import (
    FEWEST_SLOTS,
    MOST_SLOTS,
    RESERVED_BYTES,
    Fit,
    fit,
    use_fp16_bank,
)
from mclst.runtime.progress import Clock
from mclst.runtime.report.files import Files
from mclst.runtime.run.options import RunOptions
from mclst.runtime.run.predict import predict
from mclst.runtime.slide.open import open_slide

SIDE = 8
TILE = SIDE * SIDE * 3


class Machine:
    """Memory in use: `base`, and the most of `each` per tile and of the ring that was ever there."""

    def __init__(self, base: int, each: int) -> None:
        self.base, self.each, self.most, self.tried = base, each, 0, list[int]()

    def open_stages(self, batch: int, slots: int) -> Any:
        def encode(tiles: Any) -> Any:
            self.tried.append(len(tiles))
            self.most = max(self.most, len(tiles) * (self.each + slots * TILE))
            return np.zeros((len(tiles), 2), np.float32)

        return CpuStages(encode, batch=(batch, SIDE, SIDE, 3), group_rows=batch, clock=Clock(), slots=slots)

    def in_use(self) -> int:
        return self.base + self.most


@given(
    base=st.integers(0, 10**9),
    each=st.integers(1, 10**8),
    most=st.integers(1, 100),
    room=st.integers(0, 10**10),
    on_device=st.booleans(),
)
def test_what_is_chosen_fits_and_what_is_refused_does_not(
    base: int, each: int, most: int, room: int, on_device: bool
) -> None:
    machine, budget = Machine(base, each), room + RESERVED_BYTES
    one = base + each + FEWEST_SLOTS * TILE
    if one > room:
        with pytest.raises(ResourceError, match="is too small: one tile at a time takes"):
            fit(machine.open_stages, budget, max_batch=most, in_use=machine.in_use, on_device=on_device)
        return
    result = fit(machine.open_stages, budget, max_batch=most, in_use=machine.in_use, on_device=on_device)
    assert 1 <= result.batch <= most and FEWEST_SLOTS <= result.slots <= MOST_SLOTS
    sides = 2 if on_device else 1
    ring = result.batch * (result.slots - FEWEST_SLOTS) * TILE * sides
    assert base + result.batch * (each + FEWEST_SLOTS * TILE) + ring <= room
    # It stopped at the limit, or where doubling might not fit.
    following = base + min(most, 2 * result.batch) * (each + FEWEST_SLOTS * TILE)
    assert result.batch == most or following + result.batch * (each + FEWEST_SLOTS * TILE) > room
    assert machine.tried == sorted(machine.tried) and max(machine.tried) == result.batch


def test_the_text_says_how() -> None:
    machine = Machine(10**9, 10**7)
    result = fit(machine.open_stages, 4 * 10**9, max_batch=64, in_use=machine.in_use, on_device=False)
    assert (result.batch, result.slots) == (64, 6)
    assert result.text.startswith(
        "memory budget 4.00 GB: batches of 64, a ring of 6; 1.64 GB in use when tried"
    )


def test_a_bank_is_halved_where_it_is_large_against_the_budget() -> None:
    assert not use_fp16_bank(11_000, 785, 4 * 10**9) and not use_fp16_bank(10**6, 10**4, None)
    assert use_fp16_bank(10**6, 1000, 4 * 10**9)


def assert_same_map(result: Path, expected: Path) -> None:
    one, other = anndata.read_h5ad(result), anndata.read_h5ad(expected)
    assert np.array_equal(one.X, other.X) and np.isfinite(one.X).all()
    for column in ("nearest_distance", "effective_k"):
        assert np.array_equal(one.obs[column], other.obs[column])


def fitting(monkeypatch: pytest.MonkeyPatch, batch: int, slots: int) -> None:
    """As on a machine where so much fits into the budget."""
    monkeypatch.setattr(opened, "fit_run", lambda *args: Fit(batch, slots, f"batches of {batch}"))


@pytest.mark.slow
def test_the_map_does_not_depend_on_what_fits(
    small: Small, small_bundle: Path, run_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of a cluster whose memories differ choose other batches and rings for one budget."""
    bare = RunOptions(picture=False, report=False, files=Files(html=False), provider="cpu")
    for folder, slide, spots in (
        (small_bundle, small.slide, small.spots),
        (run_inputs / "mclst-bundle", run_inputs / "slide.tif", run_inputs / "spots.csv"),
    ):
        bundle, expected = open_bundle(folder), tmp_path / f"{slide.stem}.h5ad"
        with open_slide(slide) as opened_slide:
            predict(bundle, opened_slide, spots, expected, bare)
            for batch, slots in ((1, 2), (3, 6), (16, 4), (100, 3)):
                fitting(monkeypatch, batch, slots)
                out = tmp_path / f"{slide.stem}-{batch}.h5ad"
                options = replace(bare, memory_budget=10**9, batch_size=100)
                run = predict(bundle, opened_slide, spots, out, options)
                assert f"batches of {batch}" in run.notes
                assert_same_map(out, expected)


def test_a_part_from_where_less_fits_is_not_mixed_in(
    run_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(run_inputs / "mclst-bundle")
    bare = RunOptions(picture=False, report=False, files=Files(html=False), provider="cpu")
    expected, out = tmp_path / "wanted.h5ad", tmp_path / "map.h5ad"
    with open_slide(run_inputs / "slide.tif") as slide:
        predict(bundle, slide, run_inputs / "spots.csv", expected, bare)
        for shard, batch in ((SlidePart(2, 0), 16), (SlidePart(2, 1), 4), (SlidePart(2), 16)):
            fitting(monkeypatch, batch, 2)
            options = replace(bare, memory_budget=10**9, overwrite=True)
            run = predict(bundle, slide, run_inputs / "spots.csv", out, options, shard=shard)
    (note,) = [note for note in run.notes if "part" in note]
    assert note == "part 2 of 2 was made with another: the batch size (4 → 16); its 88 tiles are done again"
    assert_same_map(out, expected)
    assert {path.name for path in tmp_path.iterdir()} == {"map.h5ad", "wanted.h5ad"}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell the memory held")
@pytest.mark.slow
def test_a_run_stays_within_its_budget(small: Small, exported_bundle: Path, tmp_path: Path) -> None:
    """The most memory the process ever held, as the kernel has it."""

    def run(budget: str) -> tuple[int, str, int]:
        options = ["--spots", str(small.spots), "--bundle", str(exported_bundle), "--overwrite"]
        options += ["--out", str(tmp_path / "map.h5ad"), "--memory-budget", budget, "--provider", "cpu"]
        code = """
import atexit, sys
from mclst.runtime.cli.infer import main
status = lambda: open("/proc/self/status").read()
atexit.register(lambda: open("most", "w").write(status().split("VmHWM:")[1].split()[0]))
main(sys.argv[1:])
"""
        command = [
            sys.executable,
            "-c",
            code,
            str(small.slide),
            *options,
            "--json",
            str(tmp_path / "run.json"),
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stderr, 1024 * int((tmp_path / "most").read_text())

    code, stderr, most = run("3GB")
    assert code == 0, stderr
    (note,) = [n for n in json.loads((tmp_path / "run.json").read_text())["notes"] if "memory budget" in n]
    assert (
        "batches of 16, a ring of 6" in note
        and "the bank in float32" in note
        and note in " ".join(stderr.split())
    )
    assert most <= 3 * 10**9
    (tmp_path / "run.json").unlink()
    (tmp_path / "map.h5ad").unlink()
    code, stderr, _ = run("400MB")
    assert code == 6 and "is too small: one tile at a time takes" in " ".join(stderr.split())
    assert not (tmp_path / "map.h5ad").exists()
