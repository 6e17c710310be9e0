"""Derive a bundle's graphs in other precisions from fp32 and check each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import onnx

from mclst.export.onnx.calibrate import Method, calibrate
from mclst.export.onnx.fp16 import Half, HalfGraph, to_half
from mclst.export.onnx.graph import save
from mclst.export.onnx.int8 import find_products, to_int8
from mclst.export.parity.compare import TileSet
from mclst.export.parity.tolerances import NO_LIMITS, Gate, check_count, check_gate, gate_for
from mclst.runtime.bundle.bundle import ENCODER, SLIDE_GRAPH, graph_name
from mclst.runtime.errors import CheckpointError, ParityError, ReferenceDataError
from mclst.sections.location import SlideLocation

Compare = Callable[[Path, Path | None], dict[str, Any]]
"""(encoder, slide network or None) → figures of `mclst.export.parity.compare` against the checkpoint."""


@dataclass(frozen=True)
class PrecisionOptions:
    """Precisions to write and how to calibrate and judge them.

    Parameters
    ----------
    precisions : tuple of str
        Of "fp16", "bf16" and "int8"; fp32 is always written.
    optional : tuple of str
        Those of `precisions` that are left out, with a message, where they fail; others fail the export.
    calibration_slides : tuple of Path or RemoteLocation
        Slides whose tissue calibrates int8; by default the reference's own tiles.
    calibration_tiles : int
        Number of tiles that calibrate int8.
    method : {"percentile", "entropy"}
        How int8 ranges are chosen.
    limits : Gate
        Overrides of each precision's gate.
    """

    precisions: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    calibration_slides: tuple[SlideLocation, ...] = ()
    calibration_tiles: int = 64
    method: Method = "percentile"
    limits: Gate = NO_LIMITS

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration tiles are needed."""
        return "int8" in self.precisions


FP32_ONLY = PrecisionOptions()
REDUCED = ("fp16", "bf16", "int8")


def write_precisions(
    folder: Path,
    options: PrecisionOptions,
    calibration: TileSet | None,
    tiles: TileSet,
    compare: Compare,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write `encoder.<precision>.onnx` (and `slide.<precision>.onnx`) next to the fp32 graphs in `folder`.

    Parameters
    ----------
    folder : Path
        With the fp32 graphs.
    options : PrecisionOptions
    calibration : TileSet or None
        For int8.
    tiles : TileSet
        To judge on.
    compare : callable
        Measures a graph against the checkpoint on `tiles`.
    say : callable
        Called with progress messages.

    Returns
    -------
    records : dict
        Record of each precision for parity.json.
    left_out : dict of str to str
        Optional precisions that are not written, and why.

    Raises
    ------
    ParityError
        If a precision that is not optional fails its gate, or the tiles are too few to judge it by.
    ReferenceDataError
        If int8 is not optional and has no tiles to calibrate on.
    CheckpointError
        If a graph that is not optional cannot be converted.
    """
    records: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for precision in dict.fromkeys(options.precisions):
        if precision == "fp32":
            continue
        try:
            check_count(precision, len(tiles.pixels), str(tiles))
            say(
                f"deriving the graph in {precision}"
                + (f", calibrated on {calibration}" if precision == "int8" and calibration else "")
            )
            with TemporaryDirectory() as scratch:
                record, graphs = derive_graphs(
                    folder, precision, calibration, options.method, scratch=Path(scratch)
                )
                figures = compare(graphs[ENCODER], graphs.get(SLIDE_GRAPH))
            gate = gate_for(precision, options.limits)
            records[precision] = {**record, **check_gate(precision, figures, gate, str(tiles))}
        except (CheckpointError, ParityError, ReferenceDataError) as error:
            if precision not in options.optional:
                raise
            for name in (ENCODER, SLIDE_GRAPH):
                (folder / graph_name(name, precision)).unlink(missing_ok=True)
            left_out[precision] = str(error).split("; ")[0]
            say(f"Note: the bundle gets no {precision} graph: {left_out[precision]}")
    return records, left_out


def derive_graphs(
    folder: Path, precision: str, calibration: TileSet | None, method: Method = "percentile", *, scratch: Path
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Write the graphs of `folder` in another precision.

    Returns
    -------
    record : dict
        For parity.json.
    graphs : dict of str to Path
        Graphs that a CPU can run, by fp32 file name. For bf16 these are rounded fp32 graphs in `scratch`.
    """
    fp32 = {name: folder / name for name in (ENCODER, SLIDE_GRAPH) if (folder / name).exists()}
    if precision == "fp32":
        return {}, fp32
    if precision == "int8":
        return _write_int8(folder, calibration, method), {
            **fp32,
            ENCODER: folder / graph_name(ENCODER, "int8"),
        }
    scratch.mkdir(exist_ok=True)
    return _write_half(folder, cast(Half, precision), scratch)


def check_fp32(parity: dict[str, Any], options: PrecisionOptions, tiles: TileSet) -> dict[str, Any]:
    """Check the fp32 record against the overridden limits; raises ParityError."""
    return check_gate("fp32", parity, gate_for("fp32", options.limits), str(tiles))


def _write_half(folder: Path, precision: Half, scratch: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    record: dict[str, Any] = {"provider": "cpu"}
    if precision == "bf16":
        record["provider"] = (
            "cpu, every bf16 result rounded from fp32: ONNX Runtime's CPU provider has no bf16"
        )
    graphs: dict[str, Path] = {}
    for name in (ENCODER, SLIDE_GRAPH):
        if not (folder / name).exists():
            continue
        fp32 = onnx.load(folder / name, load_external_data=False)
        converted = to_half(fp32, precision, folder=folder)
        graphs[name] = folder / graph_name(name, precision)
        _save(converted.model, graphs[name], precision)
        record[name.removesuffix(".onnx")] = _operators(converted)
        if precision == "bf16":
            graphs[name] = scratch / name
            save(to_half(fp32, precision, rounded=True, folder=folder).model, graphs[name])
    return record, graphs


def _operators(converted: HalfGraph) -> dict[str, Any]:
    return {
        "half": dict(sorted(converted.half.items())),
        "kept_fp32": dict(sorted(converted.kept.items())),
    }


def _write_int8(folder: Path, calibration: TileSet | None, method: Method) -> dict[str, Any]:
    if calibration is None:
        raise ReferenceDataError(
            "int8 is calibrated on real tiles and no image of a reference section can be read; give a "
            "slide with --calibration, or leave --precision int8 out"
        )
    fp32 = onnx.load(folder / ENCODER)
    products = find_products(fp32)
    if not products:
        raise CheckpointError(
            "the encoder has no product behind its first to compute in int8; leave --precision int8 out"
        )
    activations = list(dict.fromkeys(product.activation for product in products))
    ranges = calibrate(fp32, activations, calibration.pixels, method)
    _save(to_int8(fp32, ranges), folder / graph_name(ENCODER, "int8"), "int8")
    return {
        "provider": "cpu",
        "calibration": {
            "method": method,
            "source": calibration.source,
            "count": len(calibration.pixels),
        },
        "encoder": {"int8": len(products), "activations": len(activations)},
    }


def _save(model: onnx.ModelProto, path: Path, precision: str) -> None:
    """Save and check; CheckpointError if onnx refuses the converted graph."""
    try:
        save(model, path)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"this network cannot be written in {precision} ({reason}); leave --precision {precision} out"
        ) from error
