"""Files of a bundle without a bank: the network gives expression per tile or per slide."""

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
from mclst.export.onnx.slide_graph import write_slide_graph
from mclst.export.parity.compare import (
    TileSet,
    check_finite,
    compare_embedding,
    compare_expression,
    encode_with_checkpoint,
    encode_with_export,
    prove_expression,
    values_alone,
)
from mclst.export.parity.precisions import PrecisionOptions, check_fp32, write_precisions
from mclst.export.parity.tiles import keep_tiles, slide_tiles, stored_tiles, synthetic_tiles
from mclst.runtime.atomic import write_atomically
from mclst.runtime.bundle.bundle import ENCODER, GENES, PARITY, SLIDE_GRAPH
from mclst.runtime.bundle.manifest import Settings, SlideNetwork
from mclst.runtime.inference.slide_network import SlideNetworkSession
from mclst.runtime.inference.spot_graph import nearest_spots
from mclst.runtime.providers.opening import open_session

Floats = NDArray[np.float32]


def write_direct_bundle(
    folder: Path,
    checkpoint: Checkpoint,
    settings: Settings,
    genes: NDArray[np.str_],
    parity_tiles: int,
    precisions: PrecisionOptions,
    say: Callable[[str], None],
    kept_tiles: int = 0,
) -> dict[str, Any]:
    """Write genes, graphs and parity.json into `folder`; return their manifest fields.

    Raises CheckpointError if a graph cannot be traced, ParityError if graph and checkpoint differ.
    """
    write_atomically(folder / GENES, "".join(f"{gene}\n" for gene in genes).encode())
    system = checkpoint.system
    network = checkpoint.network(heads=settings.heads)
    slide_network = None
    if system.kind == "slide":
        slide_network = SlideNetwork(
            heads=settings.heads,
            depth=checkpoint.traits.depth,
            positions=checkpoint.positions,
            graph=settings.graph if "graph" in system.supports else None,
        )
    say(f"tracing {checkpoint.encoder} to ONNX")
    predicted = checkpoint.traits.prediction
    output = "embedding" if slide_network or predicted else "expression"
    write_graph(network, settings.tile, settings.preprocessing, folder / ENCODER, output=output)
    if slide_network:
        say("tracing the slide network to ONNX")
        write_slide_graph(network, checkpoint.traits, slide_network.graph, folder / SLIDE_GRAPH)
    tiles, calibration = _choose_tiles(checkpoint, settings, parity_tiles, precisions)
    say(f"proving parity on {tiles}")
    encoded = encode_with_checkpoint(network, tiles.pixels, settings)
    keep_tiles(folder, tiles, encoded, kept_tiles)
    embedding, expected = _parts(values_alone(encoded, settings), predicted)
    side = int(np.ceil(np.sqrt(len(expected))))
    array_xy = np.stack([np.arange(len(expected)) % side, np.arange(len(expected)) // side], 1)
    if slide_network:
        expected = predict_with_checkpoint(network, expected, array_xy, slide_network)

    def predict_with_export(encoder: Path, slide_graph: Path | None) -> tuple[Floats, Floats]:
        encoded = encode_with_export(open_session(encoder, "cpu"), tiles.pixels)
        embedding, values = _parts(values_alone(encoded, settings), predicted)
        if slide_graph is not None and slide_network is not None:
            session = SlideNetworkSession(slide_graph, slide_network, "cpu")
            values = session.predict_expression(values, array_xy)
        return embedding, values

    def compare(encoder: Path, slide_graph: Path | None) -> dict[str, Any]:
        own, actual = predict_with_export(encoder, slide_graph)
        check_finite(tiles, expected, actual, own)
        figures = {"expression": compare_expression(expected, actual)}
        return {"embedding": compare_embedding(embedding, own), **figures} if predicted else figures

    own, actual = predict_with_export(folder / ENCODER, folder / SLIDE_GRAPH if slide_network else None)
    embeddings = (embedding, own) if predicted else None
    parity = prove_expression(expected, actual, tiles, "cpu", embeddings=embeddings)
    parity = check_fp32(parity, precisions, tiles)
    parity["precisions"], parity["left_out"] = write_precisions(
        folder, precisions, calibration, tiles, compare, say
    )
    write_atomically(folder / PARITY, (json.dumps(parity, indent=2, allow_nan=False) + "\n").encode())
    return {"slide_network": slide_network.model_dump(mode="json")} if slide_network else {}


def _parts(values: Floats, predicted: int) -> tuple[Floats, Floats]:
    """Embedding, of no width where nothing is predicted beside it, and expression or features."""
    cut = values.shape[1] - predicted if predicted else 0
    return values[:, :cut], values[:, cut:]


def _choose_tiles(
    checkpoint: Checkpoint, settings: Settings, count: int, precisions: PrecisionOptions
) -> tuple[TileSet, TileSet | None]:
    """Disjoint tiles for parity and calibration: of calibration slides, the checkpoint's, else made-up."""
    if not precisions.calibration_slides:
        calibration = precisions.calibration_tiles if precisions.needs_calibration else 0
        stored = stored_tiles(checkpoint.metadata, settings.tile, count, calibration)
        return stored or (synthetic_tiles(settings.tile, count), None)
    total = count + precisions.calibration_tiles
    every = slide_tiles(precisions.calibration_slides, settings.tile, total)
    order = np.random.default_rng(0).permutation(len(every.pixels))
    cut = max(1, len(order) * count // total)
    tiles, rest = (TileSet(every.pixels[np.sort(part)], every.source) for part in np.split(order, [cut]))
    return tiles, rest if len(rest.pixels) else None


def predict_with_checkpoint(
    network: nn.Module,
    features: NDArray[np.float32],
    array_xy: NDArray[np.int64],
    slide_network: SlideNetwork,
) -> NDArray[np.float32]:
    """Run the slide network in torch: features [N, F], array coordinates [N, 2] → expression [N, G]."""
    inputs = [torch.from_numpy(features), torch.from_numpy(array_xy)]
    if slide_network.graph is not None:
        inputs += [torch.from_numpy(part) for part in nearest_spots(array_xy, slide_network.graph)]
    with torch.inference_mode():
        expression = cast(torch.Tensor, network.predict_expression(*inputs))  # type: ignore[operator]
    return cast(NDArray[np.float32], expression.numpy())
