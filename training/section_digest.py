"""SHA-256 of the sections of a training run, by which its state and its scores know them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from mclst.training.data import TrainingSection


def sections_sha256(sections: Sequence[TrainingSection]) -> str:
    """SHA-256, as hex, of the genes and of all spots, tiles, counts and coordinates; a second for 1 GB."""
    digest = hashlib.sha256("\n".join(sections[0].genes).encode())
    for section in sections:
        digest.update("\n".join(section.spot).encode())
        for array in (section.tiles, section.counts, section.array_xy):
            digest.update(np.ascontiguousarray(array).data)
        totals = section.totals
        for optional in (section.xy_px, None if totals is None else totals.spot):
            digest.update(b"-" if optional is None else np.ascontiguousarray(optional).data)
        if section.skipped and totals is not None:  # else they follow from the counts
            digest.update(np.append(totals.gene, totals.median).data)
    return digest.hexdigest()
