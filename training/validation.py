"""Score a network in training on held-out sections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mclst.kernels.retriever import Retriever
from mclst.runtime.bundle.manifest import Settings
from mclst.runtime.errors import ReferenceDataError
from mclst.sections.accuracy import Score, score
from mclst.training.contrastive import Network, Training
from mclst.training.data import TrainingSection, encoder_input

BATCH_SIZE = 64

EncodeTiles = Callable[[TrainingSection], NDArray[np.float32]]
"""A section's tiles → embeddings float32 [n, D]."""


@dataclass(frozen=True)
class TrainingBank:
    """The training sections as a bank: embedding float32 [M, D], expression float32 [M, G]."""

    embedding: NDArray[np.float32]
    expression: NDArray[np.float32]


def check_neighbors(settings: Settings, spots: int) -> None:
    """Raise ReferenceDataError if `spots` training spots cannot be the bank of these settings."""
    k = settings.retrieval.k
    if k > spots:
        raise ReferenceDataError(
            f"k is {k} and the training sections have {spots} spots together; give --k of at most {spots}, "
            "or more sections"
        )
    if settings.retrieval.weighting == "similarity" and k < spots:
        raise ReferenceDataError(
            f"weighting similarity is over all {spots} training spots and k is {k}; give --k {spots}"
        )


def validate(training: Training, held_out: Sequence[TrainingSection]) -> list[Score]:
    """Predict and score each held-out section with the training sections as bank.

    Uses the settings' sentences and retrieval, so the scores match the exported bundle. The network returns
    to training mode. Raises ValueError if k exceeds the training spots.
    """
    return score_settings(training, held_out, [training.config.settings])[0]


def score_settings(
    training: Training, held_out: Sequence[TrainingSection], several: Sequence[Settings]
) -> list[list[Score]]:
    """Scores as `validate` under several retrieval, context and normalization settings; one list each."""
    network, device = training.network, torch.device(training.config.device)
    network.eval()
    try:
        with torch.inference_mode():
            return [_scores(network, training.sections, held_out, settings, device) for settings in several]
    finally:
        network.train()


def score_encoded(
    training: Training, held_out: Sequence[TrainingSection], settings: Settings, encode: EncodeTiles
) -> list[Score]:
    """Scores as `validate`, with tile embeddings from `encode` instead of the network."""
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
    encode: EncodeTiles | None = None,
) -> list[Score]:
    retriever = Retriever(_bank(network, sections, settings, device), settings.retrieval.spec())
    encode = encode or (lambda section: _embeddings(network, section, settings, device))
    return [
        score(
            retriever.aggregate(encode(section)).expression,
            section.normalized(settings.normalization.expression),
        )
        for section in held_out
    ]


def _bank(
    network: Network, sections: Sequence[TrainingSection], settings: Settings, device: torch.device
) -> TrainingBank:
    inputs = [section.normalized(settings.normalization.input) for section in sections]
    positions = [section.positions(settings.context.positions) for section in sections]
    if settings.context.sentences == "file":  # sentences run on over section borders
        inputs, positions = [np.concatenate(inputs)], [np.concatenate(positions)]
    embeddings, length = [], settings.context.spots
    for expression, position in zip(inputs, positions, strict=True):
        for start in range(0, len(expression), length):
            sentence = slice(start, start + length)
            spots = torch.from_numpy(expression[sentence]).to(device)
            embedding = network.encode_spots(spots, torch.from_numpy(position[sentence]).to(device))
            embeddings.append(embedding.float().cpu().numpy())
    unit = settings.normalization.expression
    return TrainingBank(
        np.concatenate(embeddings), np.concatenate([section.normalized(unit) for section in sections])
    )


def _embeddings(
    network: Network, section: TrainingSection, settings: Settings, device: torch.device
) -> NDArray[np.float32]:
    embeddings = []
    for start in range(0, len(section.tiles), BATCH_SIZE):
        pixels = torch.from_numpy(np.ascontiguousarray(section.tiles[start : start + BATCH_SIZE]))
        tiles = encoder_input(pixels.to(device).permute(0, 3, 1, 2), settings.preprocessing)
        embeddings.append(network.encode_tiles(tiles).float().cpu().numpy())
    return np.concatenate(embeddings)
