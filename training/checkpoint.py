"""A trained model as one file that brings its own bank: weights, settings, genes and the measured sections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mclst.runtime.atomic import whole_file
from mclst.runtime.bundle.manifest import CHECKPOINT_FORMAT
from mclst.runtime.errors import OutputError
from mclst.training.contrastive import TrainedModel
from mclst.training.data import TrainingSection

PUBLISHED_ROWS = 65_536
"""Rows of the position tables in the published code."""
PARITY_TILES = 64
"""Training tiles that travel along, for the export to prove parity on."""


def checkpoint_content(trained: TrainedModel) -> dict[str, Any]:
    """The file's content: tensors and plain values alone, so that torch reads it with weights_only=True.

    format: CHECKPOINT_FORMAT. model: the state dict, published key names. config: the bundle's Settings. training: how it was
    trained. genes: [str], G. sections: in training order, each {name, spot: [str], counts: float32 [n, G],
    array_xy: int64 [n, 2]} and, where known, xy_px and total as TrainingSection has them. tiles: uint8 [t, S, S, 3], at most PARITY_TILES spread evenly over all spots.
    """
    state = trained.network.state_dict()
    return {
        "format": CHECKPOINT_FORMAT,
        "model": {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()},
        "config": trained.config.settings.model_dump(mode="json"),
        "training": {**trained.config.record(), "steps": trained.steps, "losses": list(trained.losses)},
        "tiles": torch.from_numpy(_sample(trained.sections)),
        "genes": [str(gene) for gene in trained.genes],
        "sections": [_section(section) for section in trained.sections],
    }


def _section(section: TrainingSection) -> dict[str, Any]:
    known = {"xy_px": section.xy_px, "total": section.total}
    return {
        "name": section.name,
        "spot": [str(spot) for spot in section.spot],
        "counts": torch.from_numpy(np.array(section.counts, dtype=np.float32)),
        "array_xy": torch.from_numpy(np.array(section.array_xy, dtype=np.int64)),
        **{name: torch.from_numpy(np.array(v)) for name, v in known.items() if v is not None},
    }


def _sample(sections: Sequence[TrainingSection]) -> NDArray[np.uint8]:
    of_spot = [(section, row) for section in sections for row in range(len(section.spot))]
    chosen = np.unique(np.linspace(0, len(of_spot) - 1, PARITY_TILES).astype(np.int64))
    return np.stack([of_spot[i][0].tiles[of_spot[i][1]] for i in chosen])


def write_checkpoint(path: Path, trained: TrainedModel) -> Path:
    """Write `path` whole or not at all, replacing what stood there; raises OutputError where that fails."""
    return save_whole(Path(path), checkpoint_content(trained))


def published_state(trained: TrainedModel) -> dict[str, torch.Tensor]:
    """The plain state dict that the published code loads: its names, its shapes, position tables of 65,536 rows.

    BLEEP has no such tables. Rows that no training spot stood at are 0; without positions all are. Raises ValueError where the tables are longer.
    """
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in trained.network.state_dict().items()
    }
    for name in {"x_embed.weight", "y_embed.weight"} & state.keys():
        own = state[name]
        if len(own) > PUBLISHED_ROWS:
            raise ValueError(f"{name} has {len(own)} rows and the published code {PUBLISHED_ROWS}")
        state[name] = torch.zeros(PUBLISHED_ROWS, own.shape[1])
        state[name][: len(own)] = own
    return state


def write_published_state(path: Path, trained: TrainedModel) -> Path:
    """Write `published_state` to `path`, whole or not at all; raises OutputError."""
    return save_whole(Path(path), published_state(trained))


def save_whole(path: Path, content: dict[str, Any]) -> Path:
    """Save `content` as torch does to `path`, whole or not at all; returns `path`. Raises OutputError."""
    with whole_file(path) as part:
        try:
            torch.save(content, part)
        except RuntimeError as error:  # torch's archive writer hides the system's error
            reason = str(error).splitlines()[0]
            raise OutputError(
                f"{path} cannot be written ({reason}); free space or choose another place"
            ) from error
    return path
