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

from mclst.export.checkpoint import Checkpoint
from mclst.export.graph import write_graph
from mclst.export.parity import encode_with_checkpoint, encode_with_export, prove_expression
from mclst.export.parity_tiles import made_up_tiles
from mclst.export.sequence import write_sequence
from mclst.runtime.bundle import ENCODER, GENES, PARITY, SEQUENCE
from mclst.runtime.manifest import Sequence, Settings
from mclst.runtime.neighbours import nearest_spots
from mclst.runtime.publish import write_whole
from mclst.runtime.sequence import SequenceSession
from mclst.runtime.session import open_session


def write_direct(
    folder: Path,
    checkpoint: Checkpoint,
    settings: Settings,
    genes: NDArray[np.str_],
    parity_tiles: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the files of a regression or sequence bundle into `folder`; the manifest's fields for them.

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
    tiles = made_up_tiles(settings.tile, parity_tiles)
    say(f"proving parity on {len(tiles.pixels)} tiles of {tiles.source}")
    expected = encode_with_checkpoint(network, tiles.pixels, settings)
    session = open_session(folder / ENCODER, "cpu")
    exported = encode_with_export(session, tiles.pixels)
    if sequence:
        side = int(np.ceil(np.sqrt(len(expected))))
        array_xy = np.stack([np.arange(len(expected)) % side, np.arange(len(expected)) // side], 1)
        expected = express_with_checkpoint(network, expected, array_xy, sequence)
        exported = SequenceSession(folder / SEQUENCE, sequence, "cpu").express(exported, array_xy)
    parity = prove_expression(expected, exported, tiles, session.provider)
    write_whole(folder / PARITY, (json.dumps(parity, indent=2, allow_nan=False) + "\n").encode())
    return {"sequence": sequence.model_dump(mode="json")} if sequence else {}


def express_with_checkpoint(
    network: nn.Module, features: NDArray[np.float32], array_xy: NDArray[np.int64], sequence: Sequence
) -> NDArray[np.float32]:
    """The checkpoint's own sequence part in torch: features [N, F], array coordinates [N, 2] → expression [N, G]."""
    inputs = [torch.from_numpy(features), torch.from_numpy(array_xy)]
    if sequence.graph is not None:
        inputs += [torch.from_numpy(part) for part in nearest_spots(array_xy, sequence.graph)]
    with torch.inference_mode():
        found = cast(torch.Tensor, network.express(*inputs))  # type: ignore[operator]
    return cast(NDArray[np.float32], found.numpy())


def _sequence(checkpoint: Checkpoint, settings: Settings) -> Sequence:
    return Sequence(
        heads=settings.heads,
        depth=checkpoint.traits.depth,
        positions=checkpoint.positions,
        graph=settings.graph if "graph" in checkpoint.system.applies else None,
    )
