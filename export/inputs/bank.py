"""Encode measured sections into a bank of spot embeddings and expression."""

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
from mclst.runtime.errors import CheckpointError, ReferenceDataError
from mclst.sections.normalize import SectionTotals, normalize
from mclst.sections.positions import table_positions

SPOT_BATCH = 1024


@dataclass(frozen=True)
class ReferenceSection:
    """A measured section, cut to the model's genes.

    Parameters
    ----------
    name : str
    spot : array of str [n]
        Spot names.
    counts : float32 [n, G]
        Genes in the model's order.
    array_xy : int64 [n, 2] or None
        Array coordinates, if known.
    xy_px : float64 [n, 2] or None
        Level-0 pixels, if known.
    totals : SectionTotals or None
        Of all measured spots; None if only these spots and the model's genes are known.
    """

    name: str
    spot: NDArray[np.str_]
    counts: NDArray[np.float32]
    array_xy: NDArray[np.int64] | None
    xy_px: NDArray[np.float64] | None
    totals: SectionTotals | None = None

    def normalized(self, kind: str) -> NDArray[np.float32]:
        """Counts in one of NORMALIZATIONS, float32 [n, G].

        Raises ReferenceDataError if log-share is asked for and the number of measured genes is unknown.
        """
        if kind == "log-share" and self.totals is not None and self.totals.measured_genes is None:
            raise ReferenceDataError(
                f"section {self.name} of the checkpoint does not say how many genes were measured, which "
                "log-share needs; train it again, or choose another normalization"
            )
        return normalize(kind, self.counts, self.totals)


def sentences(lengths: Sequence[int], context: Context) -> list[slice]:
    """Rows of each Transformer sentence over concatenated sections of these lengths.

    "file" cuts every `context.spots` rows, as the published scripts batch; "section" also cuts at section
    borders.
    """
    blocks = [sum(lengths)] if context.sentences == "file" else list(lengths)
    slices, start = [], 0
    for length in blocks:
        slices += [
            slice(start + i, start + min(i + context.spots, length)) for i in range(0, length, context.spots)
        ]
        start += length
    return slices


def positions(section: ReferenceSection, kind: str, rows: int) -> NDArray[np.int64]:
    """Indices int64 [n, 2] into position tables of `rows` rows.

    `kind` as in `table_positions`; "none" skips the check against `rows`. Raises ReferenceDataError if
    positions are missing or beyond the tables.
    """
    indices = table_positions(kind, section.array_xy, section.xy_px, len(section.spot))
    if indices is None:
        raise ReferenceDataError(
            f"section {section.name} has no {kind} coordinates for all its spots, which --positions {kind} "
            "needs; add its spots table or choose other --positions"
        )
    if kind == "none":
        return indices
    bad = np.flatnonzero((indices < 0).any(1) | (indices >= rows).any(1))
    if len(bad):
        x, y = indices[bad[0]]
        raise ReferenceDataError(
            f"spot {section.spot[bad[0]]} of section {section.name} is at {kind} position ({x}, {y}) and the "
            f"checkpoint's position tables have {rows} rows; choose other --positions or sections"
        )
    return indices


def encode_bank(
    checkpoint: Checkpoint,
    sections: Sequence[ReferenceSection],
    genes: NDArray[np.str_],
    settings: Settings,
    advance: Callable[[int], None] = lambda n: None,
) -> Bank:
    """Encode sections into a bank.

    Parameters
    ----------
    checkpoint : Checkpoint
        Of a retrieval system.
    sections : sequence of ReferenceSection
        Concatenated in this order.
    genes : array of str [G]
    settings : Settings
    advance : callable, optional
        Called with the number of spots encoded since the last call.

    Returns
    -------
    Bank

    Raises
    ------
    ReferenceDataError
        If positions are missing or beyond the tables, an embedding is not finite, or as
        `ReferenceSection.normalized`.
    CheckpointError
        If the weights do not fit `settings.heads`.
    """
    inputs = np.concatenate([s.normalized(settings.normalization.input) for s in sections])
    expression = np.concatenate([s.normalized(settings.normalization.expression) for s in sections])
    batches = (
        _encode_sentences(checkpoint, sections, inputs, settings, advance)
        if "context" in checkpoint.system.supports
        else _encode_spots(checkpoint, inputs, advance)
    )
    embedding = np.concatenate(list(batches))
    section_names = np.repeat([s.name for s in sections], [len(s.spot) for s in sections])
    spots = np.concatenate([s.spot for s in sections])
    bad = np.flatnonzero(~np.isfinite(embedding).all(axis=1))
    if len(bad):
        raise ReferenceDataError(
            f"the embedding of spot {spots[bad[0]]} of section {section_names[bad[0]]} is not finite; "
            "check its counts and --input-normalization"
        )
    return Bank(embedding, expression, genes, spots, section_names)


def stored_bank(checkpoint: Checkpoint, genes: NDArray[np.str_]) -> Bank:
    """The bank that a checkpoint of `mclst-fit` carries; CheckpointError if it does not fit the weights."""
    try:
        stored = checkpoint.metadata["bank"]
        embedding, expression = (stored[name].float().numpy() for name in ("embedding", "expression"))
        spot, section = (np.asarray([str(value) for value in stored[name]]) for name in ("spot", "section"))
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint.path} carries a damaged bank ({error!r}); fit it again"
        ) from error
    rows = len(spot)
    starts = 1 + np.count_nonzero(section[1:] != section[:-1]) if rows else 0
    if (
        embedding.shape != (rows, checkpoint.traits.width)
        or expression.shape != (rows, checkpoint.genes)
        or section.shape != (rows,)
        or starts != len(np.unique(section))
        or not (np.isfinite(embedding).all() and np.isfinite(expression).all())
    ):
        raise CheckpointError(f"{checkpoint.path} carries a bank that does not fit its weights; fit it again")
    return Bank(embedding, expression, genes, spot, section)


def _encode_sentences(
    checkpoint: Checkpoint,
    sections: Sequence[ReferenceSection],
    inputs: NDArray[np.float32],
    settings: Settings,
    advance: Callable[[int], None],
) -> Iterator[NDArray[np.float32]]:
    # Tables of 65,536 rows are most of a checkpoint: load only the rows in use.
    table_rows = np.concatenate(
        [positions(s, settings.context.positions, checkpoint.positions) for s in sections]
    )
    unique = [np.unique(table_rows[:, axis], return_inverse=True) for axis in (0, 1)]
    x_rows, y_rows = (torch.from_numpy(used) for used, _ in unique)
    if settings.context.positions == "none":
        x_rows, y_rows = x_rows[:0], y_rows[:0]
    network: MclSTExp = checkpoint.network(heads=settings.heads, x_rows=x_rows, y_rows=y_rows)
    compact = torch.from_numpy(np.stack([inverse for _, inverse in unique], axis=1).astype(np.int64))
    for sentence in sentences([len(s.spot) for s in sections], settings.context):
        with torch.inference_mode():
            yield network.encode_spots(torch.from_numpy(inputs[sentence]), compact[sentence]).numpy()
        advance(sentence.stop - sentence.start)


def _encode_spots(
    checkpoint: Checkpoint, inputs: NDArray[np.float32], advance: Callable[[int], None]
) -> Iterator[NDArray[np.float32]]:
    """Encode independent spots, SPOT_BATCH at a time."""
    network: Bleep = checkpoint.network(heads=None)
    for start in range(0, len(inputs), SPOT_BATCH):
        batch = torch.from_numpy(inputs[start : start + SPOT_BATCH])
        with torch.inference_mode():
            yield network.encode_spots(batch).numpy()
        advance(len(batch))
