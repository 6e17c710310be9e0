"""How a network in training does on sections it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mclst.kernels.retriever import Retriever
from mclst.runtime.bundle.manifest import Settings
from mclst.sections.accuracy import Score, score
from mclst.training.contrastive import Network, Training
from mclst.training.data import TrainingSection, encoder_input

TILES_AT_ONCE = 64

Encode = Callable[[TrainingSection], NDArray[np.float32]]
"""A section's tiles → embeddings float32 [n, D]."""


@dataclass(frozen=True)
class TrainingBank:
    """The training sections as the bundle's bank will have them: embedding float32 [M, D], expression [M, G]."""

    embedding: NDArray[np.float32]
    expression: NDArray[np.float32]


def validate(training: Training, held_out: Sequence[TrainingSection]) -> list[Score]:
    """Predict each held-out section from its tiles and the training sections, and score it; one Score per section.

    Encoding, sentences and retrieval are as the settings say, so that the scores are those of the exported bundle.
    The network is back in training mode afterwards. Raises ValueError where k exceeds the training spots.
    """
    return score_settings(training, held_out, [training.config.settings])[0]


def score_settings(
    training: Training, held_out: Sequence[TrainingSection], several: Sequence[Settings]
) -> list[list[Score]]:
    """The same for several settings of retrieval, context and normalisation with one network; a list for each."""
    network, device = training.network, torch.device(training.config.device)
    network.eval()
    try:
        with torch.inference_mode():
            return [_scores(network, training.sections, held_out, settings, device) for settings in several]
    finally:
        network.train()


def score_encoded(
    training: Training, held_out: Sequence[TrainingSection], settings: Settings, encode: Encode
) -> list[Score]:
    """The same where `encode` gives the sections' embeddings in place of the network; one Score per section."""
    network, device = training.network, torch.device(training.config.device)
    network.eval()
    try:
        with torch.inference_mode():
            return _scores(network, training.sections, held_out, settings, device, encode)
    finally:
        network.train()


def _scores(
    network: Network,
    sections: Sequence[TrainingSection],
    held_out: Sequence[TrainingSection],
    settings: Settings,
    device: torch.device,
    encode: Encode | None = None,
) -> list[Score]:
    retriever = Retriever(_bank(network, sections, settings, device), settings.retrieval.spec())
    given = encode or (lambda section: _embeddings(network, section, settings, device))
    return [
        score(
            retriever.aggregate(given(section)).expression,
            section.normalized(settings.normalisation.expression),
        )
        for section in held_out
    ]


def _bank(
    network: Network, sections: Sequence[TrainingSection], settings: Settings, device: torch.device
) -> TrainingBank:
    inputs = [section.normalized(settings.normalisation.input) for section in sections]
    places = [section.positions(settings.context.positions) for section in sections]
    if settings.context.sentences == "file":
        inputs, places = [np.concatenate(inputs)], [np.concatenate(places)]
    found, run = [], settings.context.spots
    for counts, where in zip(inputs, places, strict=True):
        for start in range(0, len(counts), run):
            words = torch.from_numpy(counts[start : start + run]).to(device)
            position = torch.from_numpy(where[start : start + run]).to(device)
            found.append(network.encode_spots(words, position).float().cpu().numpy())
    unit = settings.normalisation.expression
    expression = np.concatenate([section.normalized(unit) for section in sections])
    return TrainingBank(np.concatenate(found), expression)


def _embeddings(
    network: Network, section: TrainingSection, settings: Settings, device: torch.device
) -> NDArray[np.float32]:
    found = []
    for start in range(0, len(section.tiles), TILES_AT_ONCE):
        pixels = torch.from_numpy(np.ascontiguousarray(section.tiles[start : start + TILES_AT_ONCE]))
        tiles = encoder_input(pixels.to(device).permute(0, 3, 1, 2), settings.preprocessing)
        found.append(network.encode_tiles(tiles).float().cpu().numpy())
    return np.concatenate(found)
