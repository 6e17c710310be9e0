"""Score held-out sections by the graphs that an export makes of a trained network, in any precision."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from mclst.export.onnx.graph import write_graph
from mclst.export.parity.compare import TileSet
from mclst.export.parity.precisions import derive_graphs
from mclst.runtime.bundle.bundle import ENCODER
from mclst.runtime.encoder.session import DEFAULT_BATCH_SIZE
from mclst.runtime.providers.opening import open_session
from mclst.sections.accuracy import Score
from mclst.training.contrastive import Training
from mclst.training.data import TrainingSection
from mclst.training.validation import score_encoded

CALIBRATION_TILES = 64


def score_precisions(
    training: Training, held_out: Sequence[TrainingSection], precisions: Sequence[str]
) -> list[list[Score]]:
    """One Score per held-out section, for each precision; CheckpointError where a graph cannot be converted.

    The graphs run on ONNX Runtime's CPU provider, bf16 as fp32 operators with rounded results. int8 is
    calibrated on training sections. The export's tolerances do not apply: this measures what a precision
    costs.
    """
    settings = training.config.settings
    with TemporaryDirectory() as folder:
        path = Path(folder)
        network = deepcopy(training.network).cpu().eval()
        write_graph(network, settings.tile, settings.preprocessing, path / ENCODER)
        scores = []
        for precision in precisions:
            _, graphs = derive_graphs(
                path, precision, calibration_tiles(training.sections), scratch=path / "judged"
            )
            session = open_session(graphs[ENCODER], "cpu")

            def encode(section: TrainingSection) -> NDArray[np.float32]:
                starts = range(0, len(section.tiles), DEFAULT_BATCH_SIZE)
                batches = (np.ascontiguousarray(section.tiles[i : i + DEFAULT_BATCH_SIZE]) for i in starts)
                return np.concatenate([session.encode(tiles) for tiles in batches])  # noqa: B023 - used at once

            scores.append(score_encoded(training, held_out, settings, encode))
    return scores


def calibration_tiles(sections: Sequence[TrainingSection]) -> TileSet:
    """Tiles spread evenly over all spots of the sections."""
    counts = np.array([len(section.tiles) for section in sections])
    ends = np.cumsum(counts)
    chosen = np.unique(np.linspace(0, ends[-1] - 1, CALIBRATION_TILES).astype(np.int64))
    owners = np.searchsorted(ends, chosen, side="right")
    starts = ends - counts
    pixels = np.stack([sections[s].tiles[i - starts[s]] for s, i in zip(owners, chosen, strict=True)])
    return TileSet(pixels, "the training sections")
