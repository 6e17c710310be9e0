"""The steps of `make gpu-check`: what each runs, needs and may take. Imports the standard library alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = "MCLST_GPU_RESULTS"
"""Environment variable: the folder for what a test measures."""


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
_CHECK = "mclst.benchmarks.gpu_check"
_HUGE = "test_a_bank_beyond_31_bits"
_WORKERS = 4


def all_steps(folder: Path) -> list[Step]:
    """Steps in order; they work in `folder`."""
    tests = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*_gpu.py"))
    return [
        Step("device", ("-m", f"{_CHECK}.device"), 60, any_of=("cuda", "pycuda", "torch")),
        Step(
            "retrieval",
            ("-m", f"{_CHECK}.retrieval", str(folder / "retrieval")),
            110,
            needs=("numpy", "scipy"),
            document=folder / "retrieval",
            device=True,
        ),
        Step(
            "encoder",
            ("-m", f"{_CHECK}.encoder", str(folder / "encoder")),
            90,
            needs=("numpy", "torch", "torchvision", "cuda"),
            document=folder / "encoder",
            device=True,
        ),
        *(_test_step(path, folder) for path in tests),
        Step(
            "counters",
            ("-m", f"{_CHECK}.counters", str(folder / "counters")),
            90,
            needs=("numpy", "scipy"),
            programs=(Path("ncu"),),
            document=folder / "counters",
            device=True,
        ),
        *_bundle_steps(folder),
        Step(
            "sanitizer",
            ("-m", f"{_CHECK}.sanitize"),
            60,
            needs=("numpy",),
            programs=(Path("compute-sanitizer"),),
            device=True,
        ),
        Step(
            "tests: 31 bits",
            (*_pytest(), f"{next(path for path in tests if Path(path).stem == 'test_cuda_gpu')}::{_HUGE}"),
            75,
            needs=("pytest", "numpy", "scipy"),
            device=True,
        ),
    ]


def chosen(steps: Sequence[Step], names: str | None) -> list[Step]:
    """The first step, and those whose names contain one of `names`, separated by commas; None: all.

    Raises ValueError if a name is in no step's.
    """
    if names is None:
        return list(steps)
    parts = [part.strip() for part in names.split(",")]
    for part in parts:
        if not part or not any(part in step.name for step in steps):
            known = ", ".join(step.name for step in steps[1:])
            raise ValueError(f"no step is called {part!r}; choose of {known}")
    return [steps[0], *(step for step in steps[1:] if any(part in step.name for part in parts))]


def _pytest(*, workers: bool = False) -> tuple[str, ...]:
    alone = ("-m", "pytest", "--noconftest", "-q", "-rs", "-m", "gpu", "-p", "no:cacheprovider")
    if workers and find_spec("xdist") is not None:
        return (*alone, "--numprocesses", str(_WORKERS), "--dist", "worksteal")
    return alone


def _test_step(path: str, folder: Path) -> Step:
    stem = Path(path).stem
    # The definition in float64 takes the time there; elsewhere, things are timed.
    command = _pytest(workers=stem == "test_cuda_gpu")
    return Step(
        f"tests: {stem}",
        (*command, "--deselect", f"{path}::{_HUGE}", path),
        75,
        needs=("pytest", "numpy", "scipy"),
        document=folder / "engines" if stem == "test_engines_gpu" else None,
        device=True,
    )


def _bundle_steps(folder: Path) -> list[Step]:
    bench = ("-m", "mclst.benchmarks.cli")
    case, bundle = folder / "made", folder / "made" / "mclst-bundle"
    return [
        Step(
            "bundle",
            ("-m", f"{_CHECK}.case", str(case)),
            110,
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
    ]  # fmt: skip
