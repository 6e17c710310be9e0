"""`make gpu-check`: benchmarks and tests that need a CUDA device, from this tree alone, in one JSON document.

Imports only the standard library and downloads nothing. Each step is a process with a time limit; numbers are
first. A step that lacks a package, fails or times out is recorded with what it measured until then, and the
next one starts. The document is written after every step.
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
TOTAL_SECONDS = 470.0
"""Limit of the whole check; a step gets at most what remains of it."""

DOCUMENT = "gpu-check.json"
PASSED, FAILED, LATE, MISSING, NO_TIME = "passed", "failed", "too late", "missing", "no time left"
TAIL_LINES = 25


@dataclass(frozen=True)
class Step:
    """One process.

    arguments: of Python. seconds: its limit. needs: required modules. any_of: of these one is required.
    programs: required, on the path or in the CUDA toolkit. files: required results of earlier steps.
    document: its JSON result, or a folder of several, merged into the whole. device: skipped where the first
    step has not passed.
    """

    name: str
    arguments: Sequence[str]
    seconds: float
    needs: Sequence[str] = ()
    any_of: Sequence[str] = ()
    programs: Sequence[Path] = ()
    files: Sequence[Path] = ()
    document: Path | None = None
    device: bool = False


@dataclass
class StepResult:
    """Status and output of a step."""

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
    """Steps in order; they work in `folder`."""
    check = "mclst.benchmarks.gpu_check"
    bench = ("-m", "mclst.benchmarks.cli")
    case, bundle = folder / "made", folder / "made" / "mclst-bundle"
    gpu_tests = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*_gpu.py"))
    pytest = ("-m", "pytest", "--noconftest", "-q", "-rs", "-m", "gpu", "-p", "no:cacheprovider")
    huge = "test_a_bank_beyond_31_bits"

    return [
        Step("device", ("-c", _DEVICE), 60, any_of=("cuda", "pycuda", "torch")),
        Step(
            "retrieval",
            ("-m", f"{check}.retrieval", str(folder / "retrieval")),
            110,
            needs=("numpy", "scipy"),
            document=folder / "retrieval",
            device=True,
        ),
        Step(
            "encoder",
            ("-m", f"{check}.encoder", str(folder / "encoder")),
            90,
            needs=("numpy", "torch", "torchvision", "cuda"),
            document=folder / "encoder",
            device=True,
        ),
        *(
            Step(
                f"tests: {Path(path).stem}",
                (*pytest, "--deselect", f"{path}::{huge}", path),
                75,
                needs=("pytest", "numpy", "scipy"),
                device=True,
            )
            for path in gpu_tests
        ),
        Step(
            "bundle",
            ("-m", f"{check}.case", str(case)),
            60,
            needs=EXPORT,
            document=case / "case.json",
            device=True,
        ),
        Step(
            "end-to-end",
            (*bench, "end-to-end", str(case / "slide.tiff"), "--spots", str(case / "spots.csv"), "--bundle",
             str(bundle), "--settings", "auto:fp32", "--batch-size", "64", "--workers", "8", "--repeats", "2",
             "--no-cold", "--quiet", "--json", str(folder / "end-to-end.json")),
            60,
            needs=EXPORT,
            files=(bundle / "manifest.json",),
            document=folder / "end-to-end.json",
            device=True,
        ),
        Step(
            "latency",
            (*bench, "latency", "--bundle", str(bundle), "--settings",
             "tensorrt:fp16,tensorrt:fp32,tensorrt-rtx:fp16,cuda:fp16,cuda:fp32", "--batch-sizes", "1,64",
             "--repeats", "3", "--block", "0.7", "--no-fresh", "--no-peers", "--quiet", "--json",
             str(folder / "latency.json")),
            80,
            needs=EXPORT,
            files=(bundle / "manifest.json",),
            document=folder / "latency.json",
            device=True,
        ),
        Step(
            "sanitizer",
            ("-m", f"{check}.sanitize"),
            60,
            needs=("numpy",),
            programs=(Path("compute-sanitizer"),),
            device=True,
        ),
        Step(
            "tests: 31 bits",
            (*pytest, f"{_test_file(gpu_tests, 'test_cuda_gpu')}::{huge}"),
            75,
            needs=("pytest", "numpy", "scipy"),
            device=True,
        ),
    ]  # fmt: skip


def _test_file(paths: Sequence[str], stem: str) -> str:
    return next(path for path in paths if Path(path).stem == stem)


_DEVICE = """
import json
device = {}
try:
    import torch
    device["torch"] = torch.__version__
    device["torch sees"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
except ImportError:
    pass
try:
    from mclst.kernels.cuda.devices import open_driver
    driver = open_driver()
    driver.load()
    device["driver opened by"] = type(driver).__name__
except Exception as error:
    device["driver"] = f"not opened: {error}"
print(json.dumps(device))
raise SystemExit(0 if device.get("torch sees") or "driver opened by" in device else "no CUDA device")
"""


def run(step: Step, folder: Path, seconds: float) -> StepResult:
    """Run one step in at most `seconds`."""
    missing = [name for name in step.needs if find_spec(name) is None]
    if step.any_of and not any(find_spec(name) for name in step.any_of):
        missing.append(f"one of {', '.join(step.any_of)}")
    missing += [str(program) for program in step.programs if _find(program) is None]
    if missing:
        return StepResult(step.name, MISSING, why=f"not installed: {', '.join(missing)}")
    missing = [str(path.relative_to(folder)) for path in step.files if not path.exists()]
    if missing:
        return StepResult(step.name, MISSING, why=f"an earlier step did not make {', '.join(missing)}")
    if seconds < 5:
        return StepResult(step.name, NO_TIME)
    log = folder / f"{step.name.replace(' ', '-').replace(':', '')}.log"
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, step.arguments)],
            stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=_environment(), start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            code = None
    elapsed = time.monotonic() - started
    tail = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    if code is None:
        result = StepResult(step.name, LATE, elapsed, f"more than {seconds:.0f} s", tail)
    else:
        why = "" if code == 0 else f"exit status {code}"
        result = StepResult(step.name, PASSED if code == 0 else FAILED, elapsed, why, tail)
    if "pytest" in step.arguments and code is not None and _all_skipped(code, tail):
        result.status = MISSING
        result.why = next((line for line in tail if line.startswith("SKIPPED")), "every test was skipped")
    if step.document is not None:
        result.document = _read(step.document)
    return result


def _read(path: Path) -> Any:
    """A document, or those of a folder by name; None without one that is whole."""
    if path.is_dir():
        documents = {part.stem: _read(part) for part in sorted(path.glob("*.json"))}
        return {name: document for name, document in documents.items() if document is not None} or None
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _find(program: Path) -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which(program) or shutil.which(program, path=str(Path(home, "bin")))


def _all_skipped(code: int, tail: Sequence[str]) -> bool:
    """Whether pytest ran no test: its status 5, or only skipped ones."""
    last = tail[-1] if tail else ""
    return code == 5 or (code == 0 and "skipped" in last and "passed" not in last)


def _environment() -> dict[str, str]:
    """Environment in which this tree is importable as `mclst`."""
    paths = [str(ROOT / "build" / "as"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def check(folder: Path, chosen: Sequence[Step], total_seconds: float = TOTAL_SECONDS) -> dict[str, Any]:
    """Run the steps; write the document of `make gpu-check` after each, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    results: list[StepResult] = []
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "gpu": _nvidia_smi(),
        "packages": _packages(),
    }
    for step in chosen:
        remaining = total_seconds - (time.monotonic() - started)
        if step.device and results and results[0].status != PASSED:
            result = StepResult(step.name, MISSING, why="no CUDA device")
        else:
            result = run(step, folder, min(step.seconds, remaining))
        results.append(result)
        document |= {"seconds": time.monotonic() - started, "steps": [vars(result) for result in results]}
        part = folder / f".{DOCUMENT}.part"
        part.write_text(json.dumps(document, indent=2) + "\n")
        part.replace(folder / DOCUMENT)
        print(f"{result.name:<28} {result.status:<12} {result.seconds:6.1f} s  {result.why}", flush=True)
    return document


def _nvidia_smi() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    completed = subprocess.run(
        [program, "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit",
         "--format=csv,noheader"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    return completed.stdout.strip() or None


def _packages() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
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
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def main() -> None:
    """Run the check; exit status 0 where there was a device and no step failed or timed out, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "gpu-check", help="folder for logs and documents"
    )
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="limit of the whole check")
    options = parser.parse_args()
    folder = options.out.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    document = check(folder, steps(folder), options.seconds)
    print(folder / DOCUMENT)
    failed = [step["name"] for step in document["steps"] if step["status"] in (FAILED, LATE, NO_TIME)]
    if failed or document["steps"][0]["status"] != PASSED:
        sys.exit(f"not passed: {', '.join(failed) or document['steps'][0]['why']}")


if __name__ == "__main__":
    main()
