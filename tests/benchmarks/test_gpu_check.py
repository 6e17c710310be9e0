"""`make gpu-check` without a GPU: each step names what is missing, and none outlives its limit."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from mclst.benchmarks.gpu_check import run as gpu_check
from mclst.benchmarks.gpu_check.run import (
    FAILED,
    LATE,
    MISSING,
    NO_TIME,
    PASSED,
    ROOT,
    Step,
    check,
    steps,
)


def ends(pid: int) -> bool:
    """Whether a process ends within ten seconds (a zombie has ended)."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        status = Path(f"/proc/{pid}/stat")
        if status.is_file() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_steps_pass_fail_run_late_and_lack_what_they_need(tmp_path: Path) -> None:
    document = tmp_path / "d.json"
    child = tmp_path / "child"
    forks = (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(child)!r}, 'w').write(str(p.pid)); p.wait()"
    )
    chosen = [
        Step(
            "good", ("-c", f"open({str(document)!r}, 'w').write('[1]'); print('done')"), 30, document=document
        ),
        Step("bad", ("-c", "print('line'); raise SystemExit(3)"), 30),
        Step("late", ("-c", forks), 2 * 3),
        Step("lacks", ("-c", "0"), 30, needs=("numpy", "no_such_module")),
        Step("lacks all", ("-c", "0"), 30, any_of=("no_such", "nor_this")),
        Step("has one", ("-c", "0"), 30, any_of=("no_such", "json")),
        Step("behind", ("-c", "0"), 30, files=(tmp_path / "absent.txt",)),
        Step("on a device", ("-c", "0"), 30, device=True),
    ]
    report = check(tmp_path, chosen)
    by_name = {step["name"]: step for step in report["steps"]}
    assert [step["status"] for step in report["steps"]] == [
        PASSED, FAILED, LATE, MISSING, MISSING, PASSED, MISSING, PASSED,
    ]  # fmt: skip
    assert by_name["good"]["document"] == [1] and by_name["good"]["said"] == ["done"]
    assert by_name["bad"]["why"] == "exit status 3" and by_name["bad"]["said"] == ["line"]
    assert by_name["lacks"]["why"] == "not installed: no_such_module"
    assert "absent.txt" in by_name["behind"]["why"]
    assert ends(int(child.read_text()))  # the child of a late step ends with it
    json.dumps(report, allow_nan=False)


def test_without_a_device_the_rest_is_left_out_and_time_runs_out_at_the_end(tmp_path: Path) -> None:
    chosen = [
        Step("device", ("-c", "raise SystemExit('no CUDA device')"), 30),
        Step("needs it", ("-c", "0"), 30, device=True),
        Step("does not", ("-c", "0"), 30),
    ]
    report = check(tmp_path, chosen)
    assert [step["status"] for step in report["steps"]] == [FAILED, MISSING, PASSED]
    assert report["steps"][1]["why"] == "no CUDA device" and report["steps"][0]["said"] == ["no CUDA device"]
    assert [s["status"] for s in check(tmp_path, chosen[2:], total_seconds=1.0)["steps"]] == [NO_TIME]


def test_it_imports_the_standard_library_alone() -> None:
    tree = ast.parse(Path(gpu_check.__file__).read_text())
    modules = {n.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for n in node.names}
    modules |= {str(node.module).split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert modules <= sys.stdlib_module_names


def test_every_step_is_there_and_they_fit_into_eight_minutes(tmp_path: Path) -> None:
    names = [step.name for step in steps(tmp_path)]
    assert names[0] == "device" and names[-4:] == ["retrieval", "bundle", "latency", "end-to-end"]
    marked = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.gpu", re.MULTILINE)
    on_gpu = {path.stem for path in (ROOT / "tests").rglob("test_*.py") if marked.search(path.read_text())}
    assert len(on_gpu) >= 3
    files = [word for step in steps(tmp_path) for word in step.arguments if word.endswith(".py")]
    assert files and all((ROOT / file).is_file() for file in files)
    modules = [step.arguments[1] for step in steps(tmp_path) if step.arguments[1].startswith("mclst.")]
    assert modules and all(find_spec(module) for module in modules)
    assert {f"tests: {stem}" for stem in on_gpu} <= set(names)
    assert gpu_check.TOTAL_SECONDS < 480


def test_the_whole_of_it_on_a_machine_without_a_gpu(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    done = subprocess.run(
        [sys.executable, "-m", "mclst.benchmarks.gpu_check.run", "--out", str(tmp_path / "out")],
        capture_output=True, text=True, check=False, cwd="/", timeout=400,
        env={**os.environ, "PYTHONPATH": str(ROOT / "build" / "as")},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    report = json.loads((tmp_path / "out" / "gpu-check.json").read_text())
    assert report["schema"] == "mclst-gpu-check/1" and report["steps"][0]["status"] == FAILED
    for step in report["steps"][1:]:
        assert step["status"] == MISSING and step["why"], step


def test_a_case_of_full_shape_is_made_without_data(tmp_path: Path) -> None:
    from mclst.benchmarks.gpu_check.case import make_case
    from mclst.runtime.bundle.bundle import open_bundle

    report = make_case(
        tmp_path / "made", encoder="resnet18", genes=16, slide_px=512, across=4, reference=230, tile_px=64
    )
    bundle = open_bundle(tmp_path / "made" / "mclst-bundle")
    assert bundle.manifest.bank_rows == 230 and bundle.manifest.tile.size_px == 64
    assert list(bundle.precisions) == report["precisions"]
    for name in ("model.pt", "slide.png", "spots.csv"):
        assert (tmp_path / "made" / name).is_file()
