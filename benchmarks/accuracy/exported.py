"""A network in training as the graph an export would make of it, in any precision; held-out sections scored by it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from mclst.export.onnx.graph import write_graph
from mclst.export.parity.compare import Tiles
from mclst.export.parity.precisions import derive
from mclst.runtime.bundle.bundle import ENCODER
from mclst.runtime.encoder.session import AT_ONCE
from mclst.runtime.inference.providers import open_session
from mclst.sections.accuracy import Score
from mclst.training.contrastive import Training
from mclst.training.data import TrainingSection
from mclst.training.validation import score_encoded

CALIBRATION_TILES = 64


def score_precisions(
    training: Training, held_out: Sequence[TrainingSection], precisions: Sequence[str]
) -> list[list[Score]]:
    """One Score per held-out section, for each precision; int8 is calibrated on tiles of the training sections.

    The graphs run on ONNX Runtime's CPU provider, bf16 as fp32 operators whose results are rounded. No gate is asked:
    what a precision costs is what this measures. Raises CheckpointError where a graph cannot be converted.
    """
    settings = training.config.settings
    with TemporaryDirectory() as folder:
        path = Path(folder)
        network = deepcopy(training.network).cpu().eval()
        write_graph(network, settings.tile, settings.preprocessing, path / ENCODER)
        found = []
        for precision in precisions:
            _, graphs = derive(path, precision, calibration_tiles(training.sections), spare=path / "judged")
            session = open_session(graphs[ENCODER], "cpu")

            def encode(section: TrainingSection) -> NDArray[np.float32]:
                starts = range(0, len(section.tiles), AT_ONCE)
                some = (np.ascontiguousarray(section.tiles[i : i + AT_ONCE]) for i in starts)
                return np.concatenate([session.encode(tiles) for tiles in some])  # noqa: B023 - used at once

            found.append(score_encoded(training, held_out, settings, encode))
    return found


def calibration_tiles(sections: Sequence[TrainingSection]) -> Tiles:
    """Tiles spread evenly over all spots of the sections."""
    ends = np.cumsum([len(section.tiles) for section in sections])
    chosen = np.unique(np.linspace(0, ends[-1] - 1, CALIBRATION_TILES).astype(np.int64))
    of = np.searchsorted(ends, chosen, side="right")
    starts = ends - [len(section.tiles) for section in sections]
    pixels = np.stack([sections[s].tiles[i - starts[s]] for s, i in zip(of, chosen, strict=True)])
    return Tiles(pixels, "the training sections")
