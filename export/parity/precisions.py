"""A bundle's graphs in other precisions, derived from the fp32 ones, each proved before it stays."""

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
from mclst.export.parity.compare import Tiles
from mclst.export.parity.tolerances import NO_LIMITS, Gate, gate_for, judge
from mclst.runtime.bundle.bundle import ENCODER, SEQUENCE, graph_name
from mclst.runtime.errors import CheckpointError, ReferenceDataError

Compare = Callable[[Path, Path | None], dict[str, Any]]
"""Encoder and sequence part → the figures of `mclst.export.parity.compare` against the checkpoint."""


@dataclass(frozen=True)
class Precisions:
    """What beside fp32 to write, and what it must keep.

    wanted: of "fp16", "bf16" and "int8"; "fp32" is there anyway. calibration: slides whose tissue calibrates int8,
    in place of the reference's own tiles. calibration_tiles, method: how int8's ranges are found. limits: in place
    of a precision's own gate where not None.
    """

    wanted: tuple[str, ...] = ()
    calibration: tuple[Path, ...] = ()
    calibration_tiles: int = 64
    method: Method = "percentile"
    limits: Gate = NO_LIMITS

    @property
    def calibrated(self) -> bool:
        """Whether tiles to calibrate on are needed."""
        return "int8" in self.wanted


FP32_ALONE = Precisions()


def add_precisions(
    folder: Path,
    asked: Precisions,
    calibration: Tiles | None,
    tiles: Tiles,
    compare: Compare,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write `encoder.<precision>.onnx` (and `sequence.<precision>.onnx`) beside the fp32 graphs in `folder`.

    Returns the record of each for parity.json. Raises ParityError where one fails its gate on `tiles`,
    ReferenceDataError where int8 has no tiles to calibrate on, CheckpointError where a graph cannot be converted.
    """
    done: dict[str, Any] = {}
    for precision in dict.fromkeys(asked.wanted):
        if precision == "fp32":
            continue
        say(
            f"deriving the graph in {precision}"
            + (f", calibrated on {calibration}" if precision == "int8" else "")
        )
        with TemporaryDirectory() as spare:
            record, graphs = derive(folder, precision, calibration, asked.method, spare=Path(spare))
            found = compare(graphs[ENCODER], graphs.get(SEQUENCE))
        done[precision] = {**record, **judge(precision, found, gate_for(precision, asked.limits), str(tiles))}
    return done


def derive(
    folder: Path, precision: str, calibration: Tiles | None, method: Method = "percentile", *, spare: Path
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Write the graphs of `folder` in `precision` beside the fp32 ones.

    Returns the record for parity.json, and the graphs by their fp32 file's name as a CPU runs them: in bf16, rounded
    fp32 ones in the folder `spare`. Raises as `add_precisions` does.
    """
    exact = {name: folder / name for name in (ENCODER, SEQUENCE) if (folder / name).exists()}
    if precision == "fp32":
        return {}, exact
    if precision == "int8":
        return _write_int8(folder, calibration, method), {
            **exact,
            ENCODER: folder / graph_name(ENCODER, "int8"),
        }
    spare.mkdir(exist_ok=True)
    return _write_half(folder, cast(Half, precision), spare)


def judge_fp32(parity: dict[str, Any], asked: Precisions, tiles: Tiles) -> dict[str, Any]:
    """The fp32 record, held to the limits that were given; raises ParityError as `judge` does."""
    return judge("fp32", parity, gate_for("fp32", asked.limits), str(tiles))


def _write_half(folder: Path, precision: Half, spare: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """Write them; the record, and the graphs to judge them by: in bf16, rounded fp32 ones in `spare`."""
    record: dict[str, Any] = {"provider": "cpu"}
    if precision == "bf16":
        record["provider"] = (
            "cpu, every bf16 result rounded from fp32: ONNX Runtime's CPU provider has no bf16"
        )
    judged: dict[str, Path] = {}
    for name in (ENCODER, SEQUENCE):
        if not (folder / name).exists():
            continue
        exact = onnx.load(folder / name)
        converted = to_half(exact, precision)
        judged[name] = folder / graph_name(name, precision)
        _save(converted.model, judged[name], precision)
        record[name.removesuffix(".onnx")] = _operators(converted)
        if precision == "bf16":
            judged[name] = spare / name
            save(to_half(exact, precision, rounded=True).model, judged[name])
    return record, judged


def _operators(converted: HalfGraph) -> dict[str, Any]:
    return {
        "half": dict(sorted(converted.half.items())),
        "kept_fp32": dict(sorted(converted.kept.items())),
    }


def _write_int8(folder: Path, calibration: Tiles | None, method: Method) -> dict[str, Any]:
    if calibration is None:
        raise ReferenceDataError(
            "int8 is calibrated on real tiles and no image of a reference section can be read; give a slide with "
            "--calibration, or leave --precision int8 out"
        )
    exact = onnx.load(folder / ENCODER)
    products = find_products(exact)
    if not products:
        raise CheckpointError(
            "the encoder has no product behind its first to compute in int8; leave --precision int8 out"
        )
    activations = list(dict.fromkeys(product.activation for product in products))
    ranges = calibrate(exact, activations, calibration.pixels, method)
    _save(to_int8(exact, ranges), folder / graph_name(ENCODER, "int8"), "int8")
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
    """Save and check; CheckpointError where onnx refuses what the conversion made of this network."""
    try:
        save(model, path)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"this network cannot be written in {precision} ({reason}); leave --precision {precision} out"
        ) from error
