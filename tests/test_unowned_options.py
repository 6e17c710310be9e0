"""An option that only another one uses is wrong usage without that one, not ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from all_commands import command_of
from click.testing import CliRunner

UNOWNED = {
    "infer a.svs --grid 50 --all-spots": "--all-spots belongs to --spots",
    "infer a.svs --spots b.csv --csv-escape": "--csv-escape belongs to --csv",
    "infer a.svs --spots b.csv --no-html --html-px 400": "--html-px belongs to the page",
    "eval a.h5ad --truth b --baselines no-encoder --encoder resnet18": "--encoder belongs to --baselines all",
    "eval a.h5ad --truth b --baselines no-image --mpp 0.5": "--mpp belongs to --baselines all and no-encoder",
    "eval a.h5ad --truth b --baselines none --patient x": "--patient belongs to the baselines",
    "export --ckpt a.pt --precision fp16 --calibration-tiles 8": "--calibration-tiles belongs to --precision",
    "export --ckpt a.pt --no-calibrate --groups patient": "--groups belongs to --calibrate",
    "export --ckpt a.pt --max-batch 8": "--max-batch belongs to --engine and --triton",
    "export --ckpt a.pt --triton b --workspace 2GB": "--workspace belongs to --engine",
    "bundle pull hf://org/name --overwrite": "--overwrite belongs to --out",
    "bench leaderboard a --predictions b --alpha 1": "--alpha belongs to --embeddings and --bundle",
    "bench leaderboard a --embeddings b --provider cpu": "--provider belongs to --bundle",
}


@pytest.mark.parametrize("line", UNOWNED)
def test_an_option_without_its_owner_is_refused(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root, *words = line.split()
    done = CliRunner().invoke(command_of(root), words)
    assert done.exit_code == 2 and f"Error: {UNOWNED[line]}" in done.stderr, done.output
