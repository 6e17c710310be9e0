"""Calibrate a bundle as it is exported: by predictions its checkpoint carries, or by leaving sections out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mclst.export.calibrate import HeldOut, calibrate
from mclst.export.inputs.bank import ReferenceSection
from mclst.export.inputs.references import SectionImage
from mclst.kernels.definition.contract import NoWeights
from mclst.kernels.retriever import Retriever
from mclst.runtime.atomic import write_atomically
from mclst.runtime.bundle.bank import Bank, read_bank
from mclst.runtime.bundle.bundle import BANK, ENCODER, SLIDE_GRAPH
from mclst.runtime.bundle.calibration import calibration_bytes
from mclst.runtime.bundle.manifest import CALIBRATION, Settings, SlideNetwork
from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import InputError, SlideError
from mclst.runtime.inference.slide_network import SlideNetworkSession
from mclst.runtime.providers.opening import open_session
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.bounds import check_centers
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.runtime.trust.calibration import OF_BANK, OF_NETWORK, gallery_rows, stain_values
from mclst.runtime.trust.places import read_stain
from mclst.sections.patients import known_patients

LEAST_GROUPS, LEAST_SPOTS = 2, 20
Say = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """Measured sections at hand when a bundle is made, by which it may be calibrated.

    sections: of a system without a bank; may be empty with one. images: slides of sections. by_patient: leave
    sections of one patient out together. unseen: whether the network is known not to have seen them.
    """

    sections: Sequence[ReferenceSection] = ()
    images: Sequence[SectionImage] = ()
    by_patient: bool = False
    unseen: bool = False

    def located(self) -> list[SectionImage]:
        """Images with a spot on them, of at least two groups; else none."""
        images = [image for image in self.images if np.isfinite(image.xy_px).all(axis=1).any()]
        return images if len({self.group_of(image.name) for image in images}) >= LEAST_GROUPS else []

    def group_of(self, section: str) -> str:
        """Name of what is left out with a section."""
        return known_patients([section]).get(section, section) if self.by_patient else section

    @property
    def unit(self) -> str:
        """What is left out together."""
        return "patient" if self.by_patient else "section"


def write_calibration(
    folder: Path,
    metadata: Mapping[str, Any],
    settings: Settings,
    measured: Measured,
    say: Say,
    *,
    slide_network: SlideNetwork | None = None,
) -> dict[str, Any] | None:
    """Write calibration.h5 into a bundle's folder, or say why not.

    Parameters
    ----------
    folder : Path
        With the graph and, for a retrieval system, the bank.
    metadata : mapping
        The checkpoint's; `out_of_fold` of a fitted head holds predictions of left-out sections.
    settings : Settings
    measured : Measured
        Sections of the bank, or those that a system without one is calibrated by.
    say : callable
        For the user.
    slide_network : SlideNetwork, optional
        Of a system that predicts whole slides.

    Returns
    -------
    dict or None
        The manifest's `calibration`; None if the bundle is not calibrated.
    """
    stain: list[list[float]] = list(metadata.get("fit", {}).get("stain", ()))
    if metadata.get("out_of_fold"):
        groups, kind = stored_groups(metadata)
        missing = kind or "its checkpoint holds too few out-of-fold predictions with embeddings"
    elif (folder / BANK).is_file():
        groups, stain = bank_groups(folder, settings, measured, say)
        kind = measured.unit if measured.unseen else f"{measured.unit}, {OF_BANK}"
        missing = "fewer than two of its sections can be left out: one needs an image, the others k spots"
    elif measured.sections and settings.neighborhood is None:
        groups, stain = network_groups(folder, settings, slide_network, measured, say)
        kind = measured.unit if measured.unseen else OF_NETWORK
        missing = "fewer than two of the reference sections have an image"
    else:
        groups, kind = [], ""
        missing = (
            "its system brings no predictions of held-out sections; give --reference sections with slides"
        )
    groups = [group for group in groups if len(group.truth) >= LEAST_SPOTS]
    if len(groups) < LEAST_GROUPS:
        say(f"not calibrated: {missing}, so maps will not say what to trust")
        return None
    say(f"calibrating by {len(groups)} groups, left out: {kind}")
    calibration = calibrate(groups, kind=kind, stain=np.array(stain) if stain else None)
    if calibration.optimistic:
        say("Note: the network may have seen these sections, so r, errors and intervals are optimistic; "
            "--unseen says that it has not")  # fmt: skip
    write_atomically(folder / CALIBRATION, calibration_bytes(calibration))
    return {
        "left_out": kind,
        "groups": len(calibration.group),
        "sections": calibration.sections,
        "spots": calibration.spots,
    }


def stored_groups(metadata: Mapping[str, Any]) -> tuple[list[HeldOut], str]:
    """Groups from the out-of-fold predictions of a fitted head, and what was left out together, or why none.

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
    step = _step(records, sizes)
    if step is None:
        return [], "its checkpoint does not say of which spots its out-of-fold predictions are; fit it again"
    embedding = stored.numpy()
    starts = np.cumsum([0, *sizes])
    parts: dict[str, list[tuple[NDArray[Any], ...]]] = {}
    sections: dict[str, set[str]] = {}
    for record, start, size in zip(records, starts, sizes, strict=False):
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


def _step(records: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> int | None:
    """Step of the stored spots; where it is not stored, the only one that keeps as many of every block."""
    stored = records[0].get("step")
    least, most = 1, max(*sizes, stored or 1)
    for record, size in zip(records, sizes, strict=False):
        kept = max(1, len(record["prediction"]))
        least = max(least, -(-size // kept))
        if kept > 1:
            most = min(most, -(-size // (kept - 1)) - 1)
    if stored is not None:
        return int(stored) if least <= stored <= most else None
    return least if least == most else None


def bank_groups(
    folder: Path, settings: Settings, measured: Measured, say: Say
) -> tuple[list[HeldOut], list[list[float]]]:
    """Predict each section that has an image from the others' bank; also return their stains.

    With `measured.by_patient`, sections of one patient are left out together.
    """
    bank, session = read_bank(folder / BANK), open_session(folder / ENCODER, "cpu")
    spec = settings.retrieval.spec()
    of_spot = np.array([measured.group_of(str(name)) for name in bank.section])
    parts: list[HeldOut] = []
    stains: list[list[float]] = []
    for image in measured.located():
        group = measured.group_of(image.name)
        others = of_spot != group
        if spec.weighting == "similarity":
            spec = replace(spec, k=int(np.count_nonzero(others)))
        if np.count_nonzero(others) < spec.k:
            say(f"section {image.name} is not left out: without it the bank has fewer spots than k")
            continue
        encoded = _encode(image, settings, session, say)
        if encoded is None:
            continue
        rows, embedding = encoded.rows, encoded.values
        stains += encoded.stain
        rest = Bank(
            bank.embedding[others],
            bank.expression[others],
            bank.genes,
            bank.spot[others],
            bank.section[others],
        )
        try:
            predicted = Retriever(rest, spec).aggregate(embedding).expression
        except NoWeights as error:
            say(f"section {image.name} is not left out: {error}")
            continue
        truth = bank.expression[image.first_row + rows]
        parts.append(HeldOut(group, predicted, truth, embedding))
    return _joined(parts), stains


def network_groups(
    folder: Path, settings: Settings, slide_network: SlideNetwork | None, measured: Measured, say: Say
) -> tuple[list[HeldOut], list[list[float]]]:
    """Predict each section that has an image by the network as it is; also return their stains.

    slide_network: of a system that predicts whole slides. The embedding is what the encoder gives: features
    of a slide system, else the prediction itself.
    """
    session = open_session(folder / ENCODER, "cpu")
    on_slide = None
    if slide_network is not None:
        on_slide = SlideNetworkSession(folder / SLIDE_GRAPH, slide_network, "cpu")
    parts: list[HeldOut] = []
    stains: list[list[float]] = []
    for image in measured.located():
        section = next(section for section in measured.sections if section.name == image.name)
        encoded = _encode(image, settings, session, say)
        if encoded is None:
            continue
        rows, values = encoded.rows, encoded.values
        genes = section.counts.shape[1]
        if slide_network is None or on_slide is None:
            predicted, values = values[:, -genes:], values[:, :-genes] if values.shape[1] > genes else values
        elif section.array_xy is None or not _fit(section.array_xy[rows], slide_network.positions):
            say(f"Warning: section {image.name} is not used for the calibration: its spots have no array "
                "coordinates that the model knows")  # fmt: skip
            continue
        else:
            predicted = on_slide.predict_expression(values, section.array_xy[rows])
        truth = section.normalized(settings.normalization.expression)[rows]
        stains += encoded.stain
        parts.append(HeldOut(measured.group_of(image.name), predicted, truth, values))
    return _joined(parts), stains


def _fit(array_xy: NDArray[np.int64], rows: int) -> bool:
    return bool(((array_xy >= 0) & (array_xy < rows)).all())


def _joined(parts: Sequence[HeldOut]) -> list[HeldOut]:
    """One HeldOut per group."""
    by_group: dict[str, list[HeldOut]] = {}
    for part in parts:
        by_group.setdefault(part.group, []).append(part)
    return [
        HeldOut(
            group,
            np.concatenate([part.prediction for part in of]),
            np.concatenate([part.truth for part in of]),
            np.concatenate([part.embedding for part in of]),
            len(of),
        )
        for group, of in by_group.items()
    ]


class _Encoded(NamedTuple):
    """rows: int64 [n], of the section. values: float32 [n, D]. stain: `stain_values`, if measured."""

    rows: NDArray[np.int64]
    values: NDArray[np.float32]
    stain: list[list[float]]


def _encode(image: SectionImage, settings: Settings, session: Session, say: Say) -> _Encoded | None:
    """Encode the tiles of a section's spots that are on its slide; None, said, if none can be."""
    on_slide = np.flatnonzero(np.isfinite(image.xy_px).all(axis=1))
    xy_px = image.xy_px[on_slide]
    try:
        with open_slide(image.image) as slide:
            shape = TileShape(settings.tile.size_px, settings.tile.mpp, settings.tile.pad)
            check_centers(xy_px, slide, lambda row: f"section {image.name}, spot {on_slide[row] + 1}")
            stream = Tiles(slide, xy_px, shape, batch_size=16, workers=2)
            stain = read_stain(slide, xy_px)
            encoded = [(batch.rows, session.encode(batch.tiles)) for batch in stream]
    except (SlideError, InputError) as error:
        say(f"Warning: section {image.name} is not used for the calibration: {error}")
        return None
    if not encoded:
        return None
    return _Encoded(
        on_slide[np.concatenate([of for of, _ in encoded])],
        np.concatenate([values for _, values in encoded]).astype(np.float32),
        [] if stain is None else [stain_values(stain)],
    )
