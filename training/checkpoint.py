"""Write checkpoints: weights, settings, genes and the measured sections of the bank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mclst.runtime.atomic import atomic_file
from mclst.runtime.bundle.manifest import CHECKPOINT_FORMAT
from mclst.runtime.errors import write_error
from mclst.training.contrastive import TrainedModel
from mclst.training.data import TrainingSection

PUBLISHED_ROWS = 65_536
"""Rows of the position tables in the published code."""
PARITY_TILES = 64
"""Training tiles stored for the parity check of the export."""


def checkpoint_content(trained: TrainedModel) -> dict[str, Any]:
    """Content of a checkpoint: tensors and plain values, so that torch reads it with weights_only=True.

    format: CHECKPOINT_FORMAT.
    model: state dict with the published key names.
    config: the bundle's Settings.
    training: TrainConfig.record, steps and losses.
    genes: [str], G.
    sections: in training order, each {name, spot: [str], counts: float32 [n, G], array_xy: int64 [n, 2]} and,
        if known, xy_px and, of SectionTotals, total (spot), measured_genes, gene_total and median_total.
    tiles: uint8 [t, S, S, 3], at most PARITY_TILES spread evenly over all spots.
    """
    state = trained.network.state_dict()
    return {
        "format": CHECKPOINT_FORMAT,
        "model": {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()},
        "config": trained.config.settings.model_dump(mode="json"),
        "training": {**trained.config.record(), "steps": trained.steps, "losses": list(trained.losses)},
        "tiles": torch.from_numpy(_sample_tiles(trained.sections)),
        "genes": [str(gene) for gene in trained.genes],
        "sections": [_section(section) for section in trained.sections],
    }


def _section(section: TrainingSection) -> dict[str, Any]:
    totals = section.totals
    optional = {"xy_px": section.xy_px}
    plain: dict[str, Any] = {}
    if totals is not None:
        optional |= {"total": totals.spot, "gene_total": totals.gene}
        plain = {"measured_genes": totals.measured_genes, "median_total": totals.median}
    return {
        "name": section.name,
        "spot": [str(spot) for spot in section.spot],
        "counts": torch.from_numpy(np.array(section.counts, dtype=np.float32)),
        "array_xy": torch.from_numpy(np.array(section.array_xy, dtype=np.int64)),
        **{name: torch.from_numpy(np.array(v)) for name, v in optional.items() if v is not None},
        **{name: value for name, value in plain.items() if value is not None},
    }


def _sample_tiles(sections: Sequence[TrainingSection]) -> NDArray[np.uint8]:
    spots = [(section, row) for section in sections for row in range(len(section.spot))]
    chosen = np.unique(np.linspace(0, len(spots) - 1, PARITY_TILES).astype(np.int64))
    return np.stack([section.tiles[row] for section, row in (spots[i] for i in chosen)])


def write_checkpoint(path: Path, trained: TrainedModel) -> Path:
    """Write `path` atomically, replacing an existing file; raises OutputError."""
    return save_atomically(Path(path), checkpoint_content(trained))


def published_state(trained: TrainedModel) -> dict[str, torch.Tensor]:
    """State dict that the published code loads: its names and shapes, position tables of 65,536 rows.

    Rows of positions without a training spot are 0. BLEEP has no position tables.
    Raises ValueError if the model's tables are longer.
    """
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in trained.network.state_dict().items()
    }
    for name in {"x_embed.weight", "y_embed.weight"} & state.keys():
        table = state[name]
        if len(table) > PUBLISHED_ROWS:
            raise ValueError(f"{name} has {len(table)} rows and the published code {PUBLISHED_ROWS}")
        state[name] = torch.zeros(PUBLISHED_ROWS, table.shape[1])
        state[name][: len(table)] = table
    return state


def write_published_state(path: Path, trained: TrainedModel) -> Path:
    """Write `published_state` to `path` atomically; raises OutputError."""
    return save_atomically(Path(path), published_state(trained))


def save_atomically(path: Path, content: dict[str, Any]) -> Path:
    """Call torch.save on `path` atomically; returns `path`. Raises OutputError.

    The same content gives the same bytes, wherever it is written.
    """
    # By path, torch.save names the archive's root folder after the temporary file.
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's archive writer hides the OSError
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            raise write_error(path, reason, "free space or choose another path") from error
    return path
