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
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from mclst.benchmarks.gpu_check.device import find_program
from mclst.benchmarks.gpu_check.steps import RESULTS, ROOT, Step, all_steps, chosen

SCHEMA = "mclst-gpu-check/1"
TOTAL_SECONDS = 470.0
"""Limit of the whole check; a step gets at most what remains of it."""

DOCUMENT = "gpu-check.json"
PASSED, FAILED, LATE, MISSING, NO_TIME = "passed", "failed", "too late", "missing", "no time left"
STOPPED = "stopped"
TAIL_LINES, FAILED_LINES = 25, 120
KILLED_SECONDS = 15
"""A process that is killed amid a call of a driver that hangs may never end; the next step goes on."""


@dataclass
class StepResult:
    """Status and output of a step."""

    name: str
    status: str
    seconds: float = 0.0
    why: str = ""
    said: list[str] = field(default_factory=list)
    document: Any = None


def run(step: Step, folder: Path, seconds: float) -> StepResult:
    """Run one step in at most `seconds`."""
    missing = [name for name in step.needs if find_spec(name) is None]
    if step.any_of and not any(find_spec(name) for name in step.any_of):
        missing.append(f"one of {', '.join(step.any_of)}")
    missing += [str(program) for program in step.programs if find_program(str(program)) is None]
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
        status, why = PASSED, ""
        try:
            with _stops_held():
                process = subprocess.Popen(
                    [sys.executable, *map(str, step.arguments)],
                    stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=_environment(folder),
                    start_new_session=True,
                )  # fmt: skip
            if code := process.wait(timeout=seconds):
                status, why = FAILED, f"exit status {code}"
        except subprocess.TimeoutExpired:
            status, why = LATE, f"more than {seconds:.0f} s"
        except (KeyboardInterrupt, SystemExit) as stop:
            status, why = STOPPED, type(stop).__name__
        if status in (LATE, STOPPED):
            _kill(process)
    result = StepResult(step.name, status, time.monotonic() - started, why)
    lines = log.read_text(errors="replace").splitlines()
    result.said = lines[-(TAIL_LINES if status == PASSED else FAILED_LINES) :]
    if "pytest" in step.arguments and _all_skipped(process.returncode, lines):
        result.status = MISSING
        result.why = next((line for line in lines if line.startswith("SKIPPED")), "every test was skipped")
    if step.document is not None:
        result.document = _read(step.document)
    return result


@contextmanager
def _stops_held() -> Iterator[None]:
    """Let SIGINT and SIGTERM take effect afterwards: a step that is just starting could not be ended."""
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for one in came:
        signal.raise_signal(one)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(KILLED_SECONDS)


def _read(path: Path) -> Any:
    """A document, or those of a folder by name; None without one that is whole."""
    if path.is_dir():
        documents = {part.stem: _read(part) for part in sorted(path.glob("*.json"))}
        return {name: document for name, document in documents.items() if document is not None} or None
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _all_skipped(code: int | None, lines: Sequence[str]) -> bool:
    """Whether pytest ran no test: its status 5, or only skipped ones."""
    last = lines[-1] if lines else ""
    return code == 5 or (code == 0 and "skipped" in last and "passed" not in last)


def _environment(folder: Path) -> dict[str, str]:
    """Environment in which this tree is `mclst`, as if installed, before anything of the current folder."""
    tree = folder / "tree"
    if not tree.is_dir():
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        metadata = tree / f"mclst-{project['version']}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: mclst\nVersion: {project['version']}\n")
        (tree / "mclst").symlink_to(ROOT)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH", "")))),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",  # a step that is killed has said what it said
        RESULTS: str(folder / "engines"),
    }


def check(
    folder: Path,
    steps: Sequence[Step],
    total_seconds: float = TOTAL_SECONDS,
    copy: Path | None = None,
) -> dict[str, Any]:
    """Run the steps; write the document of `make gpu-check` after each, and return it.

    copy: a second place for it. A check that is told to stop (SIGINT, SIGTERM) ends its step and writes what
    there is.
    """
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
    for step in steps:
        remaining = total_seconds - (time.monotonic() - started)
        if step.device and results and results[0].status != PASSED:
            result = StepResult(step.name, MISSING, why="no CUDA device")
        else:
            result = run(step, folder, min(step.seconds, remaining))
        results.append(result)
        document |= {"seconds": time.monotonic() - started, "steps": [vars(result) for result in results]}
        for path in filter(None, (folder / DOCUMENT, copy)):
            part = path.with_name(f".{path.name}.part")
            part.write_text(json.dumps(document, indent=2) + "\n")
            part.replace(path)
        print(f"{result.name:<28} {result.status:<12} {result.seconds:6.1f} s  {result.why}", flush=True)
        if result.status == STOPPED:
            break
    return document


def _nvidia_smi() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = "--query-gpu=name,driver_version,memory.total,mig.mode.current,clocks.max.sm,power.limit"
    try:
        completed = subprocess.run(
            [program, query, "--format=csv,noheader"],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi does not answer: {error}"
    return completed.stdout.strip() or completed.stderr.strip() or None


def _packages() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in (
        "numpy",
        "torch",
        "onnxruntime",
        "onnxruntime-gpu",
        "cuda-bindings",
        "nvidia-cuda-nvrtc",
        "pycuda",
        "tensorrt",
        "triton",
        "cupy-cuda13x",
        "cupy-cuda12x",
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
    parser.add_argument("--copy", type=Path, help="file to write the document to as well, after each step")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="limit of the whole check")
    parser.add_argument(
        "--steps", metavar="A,B", help="only the device and steps whose names contain one of these words"
    )
    options = parser.parse_args()
    folder = options.out.resolve()
    if folder.is_dir() and any(folder.iterdir()) and not (folder / DOCUMENT).is_file():
        parser.error(f"{folder} holds other files than an earlier check's; give an empty folder")
    try:
        steps = chosen(all_steps(folder), options.steps)
    except ValueError as error:
        parser.error(str(error))
    shutil.rmtree(folder, ignore_errors=True)
    signal.signal(signal.SIGTERM, _stop)
    document = check(folder, steps, options.seconds, options.copy)
    print(folder / DOCUMENT)
    bad = [step["name"] for step in document["steps"] if step["status"] not in (PASSED, MISSING)]
    if bad or document["steps"][0]["status"] != PASSED:
        sys.exit(f"not passed: {', '.join(bad) or document['steps'][0]['why']}")


def _stop(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
