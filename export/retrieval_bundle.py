"""Files of a retrieval bundle: reference sections, bank, graphs and parity."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mclst.export.inputs.bank import ReferenceSection, encode_bank, stored_bank
from mclst.export.inputs.checkpoint import Checkpoint
from mclst.export.inputs.references import (
    GeneList,
    SectionImage,
    find_references,
    known_genes,
    model_genes,
    read_references,
    stored_sections,
)
from mclst.export.onnx.graph import write_graph
from mclst.export.parity.compare import TileSet, compare_export, encode_with_checkpoint, prove
from mclst.export.parity.precisions import PrecisionOptions, check_fp32, write_precisions
from mclst.export.parity.tiles import keep_tiles, real_tiles, slide_tiles, stored_tiles, synthetic_tiles
from mclst.models.encoders import take_tiles
from mclst.runtime.atomic import write_atomically
from mclst.runtime.bundle.bank import Bank, bank_bytes
from mclst.runtime.bundle.bundle import BANK, ENCODER, PARITY
from mclst.runtime.bundle.manifest import Settings
from mclst.runtime.errors import ReferenceDataError
from mclst.runtime.providers.opening import open_session
from mclst.runtime.section_options import SectionFiles


@dataclass(frozen=True)
class Reference:
    """Measured sections of a bank before encoding; or the bank itself, where a checkpoint carries one."""

    sections: list[ReferenceSection]
    genes: GeneList
    images: list[SectionImage]
    bank: Bank | None = None

    @property
    def spots(self) -> dict[str, int]:
        """Spots of each section, in bank order."""
        if self.bank is None:
            return {section.name: len(section.spot) for section in self.sections}
        names, counts = np.unique(self.bank.section, return_counts=True)
        of_name = dict(zip(names.tolist(), counts.tolist(), strict=True))
        return {str(name): of_name[str(name)] for name in dict.fromkeys(self.bank.section.tolist())}


def load_reference(
    checkpoint: Checkpoint,
    paths: Sequence[Path],
    sections: str | None,
    hold_out: Sequence[str],
    genes: Path | None,
    settings: Settings,
    say: Callable[[str], None],
    files: SectionFiles | None = None,
) -> Reference:
    """Read the chosen reference sections, or those stored in the checkpoint.

    Raises ReferenceDataError if there are none or the gene order is unknown, SectionError as the readers do.
    """
    if "bank" in checkpoint.metadata:
        if paths or sections or hold_out:
            raise ReferenceDataError(
                f"{checkpoint.path} carries its own bank; leave --reference, --sections and --hold-out out"
            )
        genes_of = known_genes(checkpoint, genes)
        return Reference([], genes_of, [], stored_bank(checkpoint, genes_of.names))
    if paths:
        sources = find_references(paths, sections, hold_out, files)
        raw = {settings.normalization.input, settings.normalization.expression} == {"none"}
        read = read_references(
            sources,
            lambda first: model_genes(checkpoint, paths, genes, first),
            lambda text: None if raw else say(f"Warning: {text}"),
        )
        return Reference(*read)
    if not checkpoint.metadata.get("sections"):
        raise ReferenceDataError(
            f"{checkpoint.path} carries no reference sections; give the measured sections with --reference"
        )
    if sections or hold_out or genes:
        raise ReferenceDataError("--sections, --hold-out and --genes choose from a --reference; give one")
    return Reference(*stored_sections(checkpoint), [])


def load_measured(
    checkpoint: Checkpoint,
    paths: Sequence[Path],
    sections: str | None,
    hold_out: Sequence[str],
    genes: Path | None,
    say: Callable[[str], None],
    files: SectionFiles | None = None,
) -> Reference:
    """Genes of a system without a bank, and the sections, if any, that it is calibrated by.

    Raises ReferenceDataError if the gene order is unknown or the sections are of no use, SectionError as the
    readers do.
    """
    if not paths:
        if sections or hold_out:
            raise ReferenceDataError("--sections and --hold-out choose from a --reference; give one")
        return Reference([], known_genes(checkpoint, genes), [])
    if checkpoint.metadata.get("out_of_fold"):
        raise ReferenceDataError(
            f"{checkpoint.path} carries its own predictions of held-out sections; leave --reference out"
        )
    sources = find_references(paths, sections, hold_out, files)
    return Reference(
        *read_references(
            sources,
            lambda first: model_genes(checkpoint, paths, genes, first),
            lambda text: say(f"Warning: {text}"),
        )
    )


def write_retrieval_bundle(
    folder: Path,
    checkpoint: Checkpoint,
    settings: Settings,
    reference: Reference,
    parity_tiles: int,
    precisions: PrecisionOptions,
    say: Callable[[str], None],
    kept_tiles: int = 0,
) -> dict[str, Any]:
    """Write bank, graphs and parity.json into `folder`; return their manifest fields.

    Raises ReferenceDataError if the bank cannot be made, CheckpointError if a graph cannot be traced,
    ParityError.
    """
    rows = sum(reference.spots.values())
    if settings.retrieval.k > rows:
        raise ReferenceDataError(
            f"k is {settings.retrieval.k} and the reference sections have {rows} spots together; "
            f"give --k of at most {rows}, or more sections"
        )
    if settings.retrieval.weighting == "similarity" and settings.retrieval.k < rows:
        raise ReferenceDataError(
            f"--weighting similarity is over all {rows} spots and k is {settings.retrieval.k}; give --k "
            f"{rows}"
        )
    if reference.bank is None:
        say(f"encoding {rows} reference spots of {len(reference.sections)} sections")
        bank = encode_bank(checkpoint, reference.sections, reference.genes.names, settings)
    else:
        bank = reference.bank
    if not np.ptp(bank.expression):
        raise ReferenceDataError(
            "the reference sections hold no expression of the model's genes; give others"
        )
    write_atomically(folder / BANK, bank_bytes(bank))
    say(f"tracing {checkpoint.encoder} to ONNX")
    network = checkpoint.network(heads=settings.heads)
    take_tiles(network, settings.tile.size_px)
    write_graph(network, settings.tile, settings.preprocessing, folder / ENCODER)
    tiles, calibration = _choose_tiles(checkpoint, reference, settings, parity_tiles, precisions, say)
    say(f"proving parity on {tiles}")
    expected = encode_with_checkpoint(network, tiles.pixels, settings)
    keep_tiles(folder, tiles, expected, kept_tiles)
    parity = prove(expected, open_session(folder / ENCODER, "cpu"), tiles, bank, settings)
    parity = check_fp32(parity, precisions, tiles)
    parity["precisions"], parity["left_out"] = write_precisions(
        folder,
        precisions,
        calibration,
        tiles,
        lambda encoder, _: compare_export(expected, open_session(encoder, "cpu"), tiles, bank, settings),
        say,
    )
    write_atomically(folder / PARITY, (json.dumps(parity, indent=2, allow_nan=False) + "\n").encode())
    dumped = settings.model_dump(mode="json")
    fields = {
        "genes_from": reference.genes.source,
        "retrieval": dumped["retrieval"],
        "bank": [{"name": name, "spots": spots} for name, spots in reference.spots.items()],
    }
    if "context" in checkpoint.system.supports:
        fields["context"] = dumped["context"]
        fields["spot_encoder"] = {"heads": settings.heads, "depth": checkpoint.traits.depth}
    return fields


def _choose_tiles(
    checkpoint: Checkpoint,
    reference: Reference,
    settings: Settings,
    count: int,
    precisions: PrecisionOptions,
    say: Callable[[str], None],
) -> tuple[TileSet, TileSet | None]:
    """Tiles for parity and, if int8 is requested and there are any, disjoint tiles for calibration."""
    calibration_count, needs_calibration = precisions.calibration_tiles, precisions.needs_calibration
    calibration = (
        slide_tiles(precisions.calibration_slides, settings.tile, calibration_count)
        if needs_calibration and precisions.calibration_slides
        else None
    )
    # Without calibration slides, every second tile calibrates.
    from_tiles = calibration_count if needs_calibration and calibration is None else 0
    stored = stored_tiles(checkpoint.metadata, settings.tile, count, from_tiles)
    if stored is not None:
        return stored[0], calibration or stored[1]
    section_tiles = real_tiles(reference.images, settings.tile, count, say)
    if section_tiles and needs_calibration and calibration is None:
        calibration = real_tiles(
            reference.images, settings.tile, calibration_count, lambda text: None, without=section_tiles
        )
    return section_tiles or synthetic_tiles(settings.tile, count), calibration
