"""Measured sections → bank: the spot encoder over sentences of spots, and the expression that is averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mclst.export.inputs.checkpoint import Checkpoint
from mclst.models.bleep import Bleep
from mclst.models.mclstexp import MclSTExp
from mclst.runtime.bundle.bank import Bank
from mclst.runtime.bundle.manifest import Context, Settings
from mclst.runtime.errors import ReferenceDataError
from mclst.sections.normalize import normalize
from mclst.sections.positions import table_positions

SPOTS_AT_ONCE = 1024


@dataclass(frozen=True)
class ReferenceSection:
    """A measured section, cut to the model's genes.

    counts: float32 [n, G], genes in the model's order. array_xy: int64 [n, 2]; xy_px: float64 [n, 2] level-0 px;
    either may be None where the section does not tell. spot: str [n]. total: float64 [n], each spot's counts over all
    measured genes, or None where only the model's are known.
    """

    name: str
    spot: NDArray[np.str_]
    counts: NDArray[np.float32]
    array_xy: NDArray[np.int64] | None
    xy_px: NDArray[np.float64] | None
    total: NDArray[np.float64] | None = None


def sentences(lengths: Sequence[int], context: Context) -> list[slice]:
    """Rows of each Transformer sentence over concatenated sections of these lengths, in file order.

    "file": runs of `context.spots` over the whole, as the published scripts batch; "section": runs that end with
    their section. The last run may be shorter.
    """
    blocks = [sum(lengths)] if context.sentences == "file" else list(lengths)
    found, start = [], 0
    for length in blocks:
        found += [
            slice(start + i, start + min(i + context.spots, length)) for i in range(0, length, context.spots)
        ]
        start += length
    return found


def positions(section: ReferenceSection, kind: str, rows: int) -> NDArray[np.int64]:
    """Indices [n, 2] into the position tables of `rows` rows.

    kind: as `table_positions` has it; for "none" no table is asked. Raises ReferenceDataError where positions are
    missing or beyond the tables.
    """
    found = table_positions(kind, section.array_xy, section.xy_px, len(section.spot))
    if found is None:
        raise ReferenceDataError(
            f"section {section.name} has no {kind} coordinates for all its spots, which --positions {kind} needs; "
            f"add its spots table or choose the other"
        )
    if kind == "none":
        return found
    bad = np.flatnonzero((found < 0).any(1) | (found >= rows).any(1))
    if len(bad):
        x, y = found[bad[0]]
        raise ReferenceDataError(
            f"spot {section.spot[bad[0]]} of section {section.name} stands at {kind} position ({x}, {y}) and the "
            f"checkpoint's position tables have {rows} rows; choose other --positions or sections"
        )
    return found


def encode_bank(
    checkpoint: Checkpoint,
    sections: Sequence[ReferenceSection],
    genes: NDArray[np.str_],
    settings: Settings,
    advance: Callable[[int], None] = lambda n: None,
) -> Bank:
    """Encode all sections, concatenated in the order given; `advance` is called with the spots done.

    Only the rows of the position tables that occur are read. Raises ReferenceDataError as `positions` does, and where
    an embedding is not finite; CheckpointError for weights that do not fit `settings.heads`.
    """
    inputs = np.concatenate([normalize(settings.normalisation.input, s.counts, s.total) for s in sections])
    expression = np.concatenate(
        [normalize(settings.normalisation.expression, s.counts, s.total) for s in sections]
    )
    embed = (
        _sentences(checkpoint, sections, inputs, settings, advance)
        if "context" in checkpoint.system.applies
        else _each(checkpoint, inputs, advance)
    )
    embedding = np.concatenate(list(embed))
    section_names = np.repeat([s.name for s in sections], [len(s.spot) for s in sections])
    spots = np.concatenate([s.spot for s in sections])
    bad = np.flatnonzero(~np.isfinite(embedding).all(axis=1))
    if len(bad):
        raise ReferenceDataError(
            f"the embedding of spot {spots[bad[0]]} of section {section_names[bad[0]]} is not finite; "
            "check its counts and --input-normalisation"
        )
    return Bank(embedding, expression, genes, spots, section_names)


def _sentences(
    checkpoint: Checkpoint,
    sections: Sequence[ReferenceSection],
    inputs: NDArray[np.float32],
    settings: Settings,
    advance: Callable[[int], None],
) -> Iterator[NDArray[np.float32]]:
    """Embeddings of one sentence after another."""
    where = np.concatenate([positions(s, settings.context.positions, checkpoint.positions) for s in sections])
    rows = [np.unique(where[:, axis], return_inverse=True) for axis in (0, 1)]
    x_rows, y_rows = (torch.from_numpy(used) for used, _ in rows)
    if settings.context.positions == "none":
        x_rows, y_rows = x_rows[:0], y_rows[:0]
    network: MclSTExp = checkpoint.network(heads=settings.heads, x_rows=x_rows, y_rows=y_rows)
    compact = torch.from_numpy(np.stack([rows[0][1], rows[1][1]], axis=1).astype(np.int64))
    for sentence in sentences([len(s.spot) for s in sections], settings.context):
        with torch.inference_mode():
            yield network.encode_spots(torch.from_numpy(inputs[sentence]), compact[sentence]).numpy()
        advance(sentence.stop - sentence.start)


def _each(
    checkpoint: Checkpoint, inputs: NDArray[np.float32], advance: Callable[[int], None]
) -> Iterator[NDArray[np.float32]]:
    """Embeddings of spots that do not see each other, SPOTS_AT_ONCE at a time."""
    network: Bleep = checkpoint.network(heads=None)
    for start in range(0, len(inputs), SPOTS_AT_ONCE):
        some = torch.from_numpy(inputs[start : start + SPOTS_AT_ONCE])
        with torch.inference_mode():
            yield network.encode_spots(some).numpy()
        advance(len(some))
