"""TensorRT-RTX engines of an encoder at full size, built on the CPU as `mclst-export` builds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mclst.benchmarks.harness.subprocess_json import call_in_subprocess
from mclst.runtime.bundle.bundle import ENCODER, graph_name

PRECISIONS = ("fp32", "fp16")


def check_targets(targets: Sequence[str]) -> None:
    """Raise ResourceError if TensorRT-RTX is missing or builds for other targets only."""
    from mclst.export.engines import EngineBuilder, EngineOptions

    EngineBuilder(EngineOptions("tensorrt-rtx", targets=tuple(targets)))


def build_engines(
    title: str, folder: Path, targets: Sequence[str], on_built: Callable[[dict[str, Any]], object]
) -> list[dict[str, Any]]:
    """Build an engine per precision from the fp32 graph in `folder`, each in a process without torch.

    Parameters
    ----------
    title : str
        Of the encoder.
    folder : Path
        With `encoder.onnx`; other precisions get a folder inside.
    targets : sequence of str
        Compute capabilities, such as "sm_86".
    on_built : callable
        Receives each result.

    Returns
    -------
    list of dict
        precision, library, targets, max_batch; graph_mib, engine_mib (for all targets), seconds (of the
        build), peak_mib (of its process), layers (by output type).

    Raises
    ------
    ResourceError
        If TensorRT-RTX is missing or builds no engine of a graph.
    """
    results = []
    for precision in PRECISIONS:
        of_precision = folder
        if precision != "fp32":
            of_precision = folder / precision
            of_precision.mkdir()
            call_in_subprocess(
                convert, task=f"converting {title} to {precision}", advice="free memory",
                folder=folder, out=of_precision, precision=precision,
            )  # fmt: skip
        built = call_in_subprocess(
            build, task=f"building the {precision} engine of {title}",
            advice="choose other --target, or free memory", folder=of_precision, targets=targets,
        )  # fmt: skip
        results.append({"precision": precision, **built})
        on_built(results[-1])
    return results


def convert(folder: str | Path, out: str | Path, precision: Any) -> dict[str, Any]:
    """Write the half graph of `folder`'s encoder into `out`."""
    import onnx

    from mclst.export.onnx.fp16 import to_half
    from mclst.export.onnx.graph import save

    source = Path(folder)
    fp32 = onnx.load(source / ENCODER, load_external_data=False)
    save(to_half(fp32, precision, folder=source).model, Path(out) / graph_name(ENCODER, precision))
    return {}


def build(folder: str | Path, targets: Sequence[str]) -> dict[str, Any]:
    """Build the engine of the only graph in `folder`."""
    from mclst.export.engines import EngineBuilder, EngineOptions
    from mclst.runtime.encoder.tensorrt.manifest import ENGINE_MANIFEST, PLAN, read_engine_manifest
    from mclst.runtime.resources import peak_bytes

    folder, notes = Path(folder), list[str]()
    EngineBuilder(EngineOptions("tensorrt-rtx", targets=tuple(targets))).build(folder, notes.append)
    stored = list(folder.glob(f"engines/*/{ENGINE_MANIFEST}"))
    if not stored:
        raise SystemExit(notes[-1])
    manifest = read_engine_manifest(stored[0])
    key = manifest.key
    return {
        "library": f"{key.flavor} {key.version}",
        "targets": list(key.targets),
        "max_batch": key.max_batch,
        "graph_mib": _mib(folder.glob("encoder*.onnx*")),
        "engine_mib": _mib([stored[0].with_name(PLAN)]),
        "seconds": round(manifest.seconds, 1),
        "peak_mib": peak_bytes() >> 20,
        "layers": dict(manifest.layers),
    }


def _mib(paths: Iterable[Path]) -> int:
    return round(sum(path.stat().st_size for path in paths) / (1 << 20))
