"""`make gpu-check`: everything that needs a CUDA device, on a machine with nothing but this tree, in one JSON document.

Imports the standard library alone. Each step is a process of its own with a time limit; one that lacks a package, fails
or takes too long is recorded as that, and the next goes on. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = "mclst-gpu-check/1"
ALL_SECONDS = 470.0
"""Of the whole check; what is left of it when a step begins is the most that step may take."""

PASSED, FAILED, LATE, MISSING, NO_TIME = "passed", "failed", "too late", "missing", "no time left"
TAIL_LINES = 25


@dataclass(frozen=True)
class Step:
    """One process.

    needs: modules without which it is not begun; files: likewise, that earlier steps make. any_of: of these modules
    one is enough. seconds: the most it may take. document: the JSON it writes, taken into the whole's. device: whether
    it is left out where the first step found none.
    """

    name: str
    words: Sequence[str]
    seconds: float
    needs: Sequence[str] = ()
    any_of: Sequence[str] = ()
    files: Sequence[Path] = ()
    document: Path | None = None
    device: bool = False


@dataclass
class Outcome:
    """What became of a step."""

    name: str
    status: str
    seconds: float = 0.0
    why: str = ""
    said: list[str] = field(default_factory=list)
    document: Any = None


COMMAND = ("click", "rich", "numpy", "scipy")
SLIDES = (
    *COMMAND,
    "pydantic",
    "h5py",
    "anndata",
    "pandas",
    "PIL",
    "tifffile",
    "imagecodecs",
    "simplejpeg",
    "matplotlib",
)
EXPORT = (*SLIDES, "torch", "torchvision", "timm", "onnx", "onnxscript", "safetensors", "onnxruntime")


def steps(folder: Path) -> list[Step]:
    """The steps in order; they work in `folder`."""
    bench = ("-m", "mclst.benchmarks.cli")
    case, bundle = folder / "made", folder / "made" / "mclst-bundle"
    gpu_tests = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_*_gpu.py"))

    return [
        Step("device", ("-c", _DEVICE), 60, any_of=("cuda", "pycuda", "torch")),
        *(
            Step(
                f"tests: {Path(path).stem}",
                ("-m", "pytest", "--noconftest", "-q", "-rs", "-m", "gpu", "-p", "no:cacheprovider", path),
                150,
                needs=("pytest", "numpy", "scipy"),
            )
            for path in gpu_tests
        ),
        Step(
            "retrieval",
            ("-m", "mclst.benchmarks.gpu_check.retrieval", str(folder / "retrieval.json")),
            120,
            needs=("numpy", "scipy"),
            document=folder / "retrieval.json",
            device=True,
        ),
        Step("bundle", ("-m", "mclst.benchmarks.gpu_check.case", str(case)), 120, needs=EXPORT, document=case / "case.json", device=True),
        Step(
            "latency",
            (*bench, "latency", "--bundle", str(bundle), "--ckpt", str(case / "model.pt"), "--settings",
             "tensorrt:fp16,tensorrt:fp32,tensorrt-rtx:fp16,cuda:fp16,cuda:fp32,cpu:fp32", "--batch-sizes", "1,16,64",
             "--repeats", "3", "--block", "0.7", "--no-fresh", "--quiet", "--json", str(folder / "latency.json")),
            170,
            needs=EXPORT,
            files=(bundle / "manifest.json",),
            document=folder / "latency.json",
            device=True,
        ),
        Step(
            "end-to-end",
            (*bench, "end-to-end", str(case / "slide.png"), "--spots", str(case / "spots.csv"), "--bundle", str(bundle),
             "--ckpt", str(case / "model.pt"), "--settings", "auto:fp32,cpu:fp32", "--batch-size", "64", "--repeats", "2",
             "--no-cold", "--quiet", "--json", str(folder / "end-to-end.json")),
            120,
            needs=EXPORT,
            files=(bundle / "manifest.json",),
            document=folder / "end-to-end.json",
            device=True,
        ),
    ]  # fmt: skip


_DEVICE = """
import json
found = {}
try:
    import torch
    found["torch"] = torch.__version__
    found["torch sees"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
except ImportError:
    pass
try:
    from mclst.kernels.driver import open_driver
    driver = open_driver()
    driver.load()
    found["driver opened by"] = type(driver).__name__
except Exception as error:
    found["driver"] = f"not opened: {error}"
print(json.dumps(found))
raise SystemExit(0 if found.get("torch sees") or "driver opened by" in found else "no CUDA device")
"""


def run(step: Step, folder: Path, seconds: float) -> Outcome:
    """Do one step in at most `seconds`."""
    missing = [name for name in step.needs if find_spec(name) is None]
    if step.any_of and not any(find_spec(name) for name in step.any_of):
        missing.append(f"one of {', '.join(step.any_of)}")
    if missing:
        return Outcome(step.name, MISSING, why=f"not installed: {', '.join(missing)}")
    absent = [str(path.relative_to(folder)) for path in step.files if not path.exists()]
    if absent:
        return Outcome(step.name, MISSING, why=f"an earlier step did not make {', '.join(absent)}")
    if seconds < 5:
        return Outcome(step.name, NO_TIME)
    log = folder / f"{step.name.replace(' ', '-').replace(':', '')}.log"
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, step.words)],
            stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=_environment(), start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            code = None
    took = time.monotonic() - started
    said = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    if code is None:
        return Outcome(step.name, LATE, took, f"more than {seconds:.0f} s", said)
    outcome = Outcome(
        step.name, PASSED if code == 0 else FAILED, took, "" if code == 0 else f"exit status {code}", said
    )
    if "pytest" in step.words and _nothing_ran(code, said):
        outcome.status = MISSING
        outcome.why = next(
            (line for line in said if line.startswith("SKIPPED")), "every test left itself out"
        )
    if step.document is not None and step.document.exists():
        outcome.document = json.loads(step.document.read_text())
    return outcome


def _nothing_ran(code: int, said: Sequence[str]) -> bool:
    """Whether pytest found no test that its device or its packages let run: its status 5, or only skipped ones."""
    last = said[-1] if said else ""
    return code == 5 or (code == 0 and "skipped" in last and "passed" not in last)


def _environment() -> dict[str, str]:
    """With this tree importable as `mclst`, whoever starts it."""
    paths = [str(ROOT / "build" / "as"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def check(folder: Path, chosen: Sequence[Step], all_seconds: float = ALL_SECONDS) -> dict[str, Any]:
    """Do the steps and tell of them, the document of `make gpu-check`."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    outcomes: list[Outcome] = []
    for step in chosen:
        left = all_seconds - (time.monotonic() - started)
        if step.device and outcomes and outcomes[0].status != PASSED:
            outcome = Outcome(step.name, MISSING, why="no CUDA device")
        else:
            outcome = run(step, folder, min(step.seconds, left))
        print(f"{outcome.name:<28} {outcome.status:<12} {outcome.seconds:6.1f} s  {outcome.why}", flush=True)
        outcomes.append(outcome)
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "gpu": _nvidia_smi(),
        "packages": _packages(),
        "seconds": time.monotonic() - started,
        "steps": [vars(outcome) for outcome in outcomes],
    }


def _nvidia_smi() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    done = subprocess.run(
        [program, "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit", "--format=csv,noheader"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    return done.stdout.strip() or None


def _packages() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in (
        "numpy",
        "torch",
        "onnxruntime",
        "onnxruntime-gpu",
        "cuda-bindings",
        "pycuda",
        "tensorrt",
        "cupy-cuda13x",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def main() -> None:
    """Run the check; exit status 0 where a device was there and no step failed or was late, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "gpu-check", help="folder for logs and documents"
    )
    parser.add_argument("--seconds", type=float, default=ALL_SECONDS, help="of the whole check")
    given = parser.parse_args()
    folder = given.out.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    told = check(folder, steps(folder), given.seconds)
    (folder / "gpu-check.json").write_text(json.dumps(told, indent=2) + "\n")
    print(folder / "gpu-check.json")
    bad = [step["name"] for step in told["steps"] if step["status"] in (FAILED, LATE, NO_TIME)]
    if bad or told["steps"][0]["status"] != PASSED:
        sys.exit(f"not passed: {', '.join(bad) or told['steps'][0]['why']}")


if __name__ == "__main__":
    main()
