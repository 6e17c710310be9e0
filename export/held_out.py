"""Calibrate a bundle as it is exported: by predictions its checkpoint carries, or by leaving sections out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mclst.export.calibrate import HeldOut, calibrate
from mclst.export.inputs.references import SectionImage
from mclst.kernels.retriever import Retriever
from mclst.runtime.atomic import write_atomically
from mclst.runtime.bundle.bank import Bank, read_bank
from mclst.runtime.bundle.bundle import BANK, CALIBRATION, ENCODER
from mclst.runtime.bundle.calibration import calibration_bytes
from mclst.runtime.bundle.manifest import Settings
from mclst.runtime.errors import InputError, SlideError
from mclst.runtime.inference.providers import open_session
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.bounds import check_centers
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.runtime.trust.calibration import gallery_rows, stain_values
from mclst.runtime.trust.places import read_stain

LEAST_GROUPS, LEAST_SPOTS = 2, 20
OF_BANK = "section, of the bank alone"
"""The network itself may have been trained on that section, so the figures are optimistic."""

Say = Callable[[str], None]


def write_calibration(
    folder: Path,
    metadata: Mapping[str, Any],
    settings: Settings,
    images: Sequence[SectionImage],
    say: Say,
) -> dict[str, Any] | None:
    """Write calibration.h5 into a bundle's folder, or say why not.

    Parameters
    ----------
    folder : Path
        With the graph and, for a retrieval system, the bank.
    metadata : mapping
        The checkpoint's; `out_of_fold` of a fitted head holds predictions of left-out sections.
    settings : Settings
    images : sequence of SectionImage
        Slides of the bank's sections.
    say : callable
        For the user.

    Returns
    -------
    dict or None
        The manifest's `calibration`; None if the bundle is not calibrated.
    """
    stain: list[list[float]] = list(metadata.get("fit", {}).get("stain", ()))
    if "out_of_fold" in metadata:
        groups, kind = stored_groups(metadata)
        missing = "its checkpoint holds too few out-of-fold predictions with embeddings"
    elif (folder / BANK).is_file():
        groups, stain = bank_groups(folder, settings, images, say)
        kind = OF_BANK
        missing = "fewer than two of its reference sections have an image"
    else:
        groups, kind, missing = [], "", "its system brings no predictions of held-out sections"
    groups = [group for group in groups if len(group.truth) >= LEAST_SPOTS]
    if len(groups) < LEAST_GROUPS:
        say(f"not calibrated: {missing}, so maps will not say what to trust")
        return None
    say(f"calibrating by {len(groups)} groups, each predicted without itself ({kind})")
    calibration = calibrate(groups, kind=kind, stain=np.array(stain) if stain else None)
    write_atomically(folder / CALIBRATION, calibration_bytes(calibration))
    return {
        "left_out": kind,
        "groups": len(calibration.group),
        "sections": calibration.sections,
        "spots": calibration.spots,
    }


def stored_groups(metadata: Mapping[str, Any]) -> tuple[list[HeldOut], str]:
    """Groups from the out-of-fold predictions of a fitted head, and what was left out together.

    A checkpoint may keep every k-th spot of the predictions, and some spots' embeddings (the bank, or a
    gallery evenly over all spots): a spot counts if it has both.
    """
    records = metadata["out_of_fold"]
    bank, gallery = metadata.get("bank"), metadata.get("gallery")
    stored: Any = gallery if bank is None else bank["embedding"]
    if not isinstance(stored, Tensor) or not len(records):
        return [], ""
    sizes = [int(size) for size in metadata["fit"].get("block_sizes", ())]
    total = sum(sizes)
    kept = np.arange(total)
    if bank is None:
        kept = gallery_rows(total)
    if not total or len(kept) != len(stored):
        return [], ""
    embedding = stored.numpy()
    starts = np.cumsum([0, *sizes])
    parts: dict[str, list[tuple[NDArray[Any], ...]]] = {}
    sections: dict[str, set[str]] = {}
    for record, start, size in zip(records, starts, sizes, strict=False):
        step = -(-size // max(1, len(record["prediction"])))
        rows = start + np.arange(0, size, step)
        place = np.searchsorted(kept, rows)
        both = kept[np.minimum(place, len(kept) - 1)] == rows
        values = (record[name].float().numpy()[both] for name in ("prediction", "truth"))
        parts.setdefault(record["fold"], []).append((*values, embedding[place[both]]))
        sections.setdefault(record["fold"], set()).add(record["section"])
    groups = []
    for fold, of in parts.items():
        prediction, truth, of_spots = (np.concatenate(arrays) for arrays in zip(*of, strict=True))
        groups.append(HeldOut(fold, prediction, truth, of_spots, len(sections[fold])))
    every = {record["section"] for record in records}
    if len(every) == 1:
        kind = "part of one section"
    else:
        kind = "section" if len(parts) == len(every) else "group of sections"
    return groups, kind


def bank_groups(
    folder: Path, settings: Settings, images: Sequence[SectionImage], say: Say
) -> tuple[list[HeldOut], list[list[float]]]:
    """Predict each section that has an image from the others' bank; also return their stains."""
    bank, session = read_bank(folder / BANK), open_session(folder / ENCODER, "cpu")
    groups, stains = [], []
    located = [image for image in images if np.isfinite(image.xy_px).all(axis=1).any()]
    for image in located if len(located) >= LEAST_GROUPS else ():
        others = bank.section != image.name
        spec = settings.retrieval.spec()
        if np.count_nonzero(others) < spec.k:
            say(f"section {image.name} is not left out: without it the bank has fewer spots than k")
            continue
        on_slide = np.flatnonzero(np.isfinite(image.xy_px).all(axis=1))
        try:
            with open_slide(image.image) as slide:
                shape = TileShape(settings.tile.size_px, settings.tile.mpp, settings.tile.pad)
                xy_px = image.xy_px[on_slide]
                check_centers(xy_px, slide, lambda row: f"section {image.name}, spot {on_slide[row] + 1}")  # noqa: B023
                stream = Tiles(slide, xy_px, shape, batch_size=16, workers=2)
                stain = read_stain(slide, xy_px)
                encoded = [(batch.rows, session.encode(batch.tiles)) for batch in stream]
        except (SlideError, InputError) as error:
            say(f"Warning: section {image.name} is not used for the calibration: {error}")
            continue
        if not encoded:
            continue
        if stain is not None:
            stains.append(stain_values(stain))
        rows = on_slide[np.concatenate([of for of, _ in encoded])]
        embedding = np.concatenate([values for _, values in encoded]).astype(np.float32)
        rest = Bank(
            bank.embedding[others],
            bank.expression[others],
            bank.genes,
            bank.spot[others],
            bank.section[others],
        )
        predicted = Retriever(rest, spec).aggregate(embedding).expression
        truth = bank.expression[image.first_row + rows]
        groups.append(HeldOut(image.name, predicted, truth, embedding))
    return groups, stains
