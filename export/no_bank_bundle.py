"""The bundle of a system whose expression comes from the network itself: graphs, gene names and their proof."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mclst.export.inputs.checkpoint import Checkpoint
from mclst.export.onnx.graph import write_graph
from mclst.export.onnx.slide_graph import write_sequence
from mclst.export.parity.compare import (
    Tiles,
    check_finite,
    compare_expression,
    encode_with_checkpoint,
    encode_with_export,
    prove_expression,
)
from mclst.export.parity.precisions import Precisions, add_precisions, judge_fp32
from mclst.export.parity.tiles import made_up_tiles, slide_tiles
from mclst.runtime.atomic import write_whole
from mclst.runtime.bundle.bundle import ENCODER, GENES, PARITY, SEQUENCE
from mclst.runtime.bundle.manifest import Sequence, Settings
from mclst.runtime.inference.providers import open_session
from mclst.runtime.inference.sequence import SequenceSession
from mclst.runtime.inference.spot_graph import nearest_spots


def write_no_bank_bundle(
    folder: Path,
    checkpoint: Checkpoint,
    settings: Settings,
    genes: NDArray[np.str_],
    parity_tiles: int,
    precisions: Precisions,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the files of a regression or sequence bundle into `folder`; the manifest's fields for them.

    Parity is proved on tiles of the slides that calibrate int8 where any are given, else on made-up ones.

    Raises CheckpointError where a part cannot be traced, ParityError where graph and checkpoint differ.
    """
    write_whole(folder / GENES, "".join(f"{gene}\n" for gene in genes).encode())
    applies = checkpoint.system.applies
    network = checkpoint.network(heads=settings.heads if "heads" in applies else None)
    sequence = _sequence(checkpoint, settings) if checkpoint.system.kind == "sequence" else None
    say(f"tracing {checkpoint.encoder} to ONNX")
    output = "embedding" if sequence else "expression"
    write_graph(network, settings.tile, settings.preprocessing, folder / ENCODER, output=output)
    if sequence:
        say("tracing the part that sees the whole slide")
        write_sequence(network, checkpoint.traits, sequence.graph, folder / SEQUENCE)
    tiles, calibration = _tiles(settings, parity_tiles, precisions)
    say(f"proving parity on {tiles}")
    expected = encode_with_checkpoint(network, tiles.pixels, settings)
    side = int(np.ceil(np.sqrt(len(expected))))
    array_xy = np.stack([np.arange(len(expected)) % side, np.arange(len(expected)) // side], 1)
    if sequence:
        expected = express_with_checkpoint(network, expected, array_xy, sequence)

    def predict_expression(encoder: Path, part: Path | None) -> NDArray[np.float32]:
        found = encode_with_export(open_session(encoder, "cpu"), tiles.pixels)
        if part is None or sequence is None:
            return found
        return SequenceSession(part, sequence, "cpu").predict_expression(found, array_xy)

    def compare(encoder: Path, part: Path | None) -> dict[str, Any]:
        found = predict_expression(encoder, part)
        check_finite(tiles, expected, found)
        return {"expression": compare_expression(expected, found)}

    found = predict_expression(folder / ENCODER, folder / SEQUENCE if sequence else None)
    parity = judge_fp32(prove_expression(expected, found, tiles, "cpu"), precisions, tiles)
    parity["precisions"] = add_precisions(folder, precisions, calibration, tiles, compare, say)
    write_whole(folder / PARITY, (json.dumps(parity, indent=2, allow_nan=False) + "\n").encode())
    return {"sequence": sequence.model_dump(mode="json")} if sequence else {}


def _tiles(settings: Settings, count: int, precisions: Precisions) -> tuple[Tiles, Tiles | None]:
    """Tiles to prove parity on, and others to calibrate on where int8 is asked for and a slide is given."""
    if not precisions.calibration:
        return made_up_tiles(settings.tile, count), None
    found = slide_tiles(precisions.calibration, settings.tile, count + precisions.calibration_tiles)
    order = np.random.default_rng(0).permutation(len(found.pixels))
    cut = max(1, len(order) * count // (count + precisions.calibration_tiles))
    tiles, rest = (Tiles(found.pixels[np.sort(part)], found.source) for part in np.split(order, [cut]))
    return tiles, rest if len(rest.pixels) else None


def express_with_checkpoint(
    network: nn.Module, features: NDArray[np.float32], array_xy: NDArray[np.int64], sequence: Sequence
) -> NDArray[np.float32]:
    """The checkpoint's own sequence part in torch: features [N, F], array coordinates [N, 2] → expression [N, G]."""
    inputs = [torch.from_numpy(features), torch.from_numpy(array_xy)]
    if sequence.graph is not None:
        inputs += [torch.from_numpy(part) for part in nearest_spots(array_xy, sequence.graph)]
    with torch.inference_mode():
        found = cast(torch.Tensor, network.predict_expression(*inputs))  # type: ignore[operator]
    return cast(NDArray[np.float32], found.numpy())


def _sequence(checkpoint: Checkpoint, settings: Settings) -> Sequence:
    return Sequence(
        heads=settings.heads,
        depth=checkpoint.traits.depth,
        positions=checkpoint.positions,
        graph=settings.graph if "graph" in checkpoint.system.applies else None,
    )
