"""Checkpoint and, for a retrieval system, reference sections → bundle: the steps of `mclst-export`, in order."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from mclst.export.engines import EngineBuilder, EngineWishes
from mclst.export.inputs.bank import ReferenceSection, encode_bank
from mclst.export.inputs.checkpoint import Checkpoint, open_checkpoint
from mclst.export.inputs.references import (
    Genes,
    SectionImage,
    carried_sections,
    find_references,
    listed_genes,
    model_genes,
    read_references,
)
from mclst.export.no_bank_bundle import write_no_bank_bundle
from mclst.export.onnx.graph import write_graph
from mclst.export.parity.compare import Tiles, compare_export, encode_with_checkpoint, prove
from mclst.export.parity.precisions import FP32_ALONE, Precisions, add_precisions, judge_fp32
from mclst.export.parity.tiles import made_up_tiles, real_tiles, slide_tiles
from mclst.runtime.atomic import write_whole
from mclst.runtime.bundle.bank import bank_bytes
from mclst.runtime.bundle.bundle import BANK, ENCODER, PARITY, Bundle, BundleDraft
from mclst.runtime.bundle.manifest import Settings
from mclst.runtime.errors import CheckpointError, ReferenceDataError, SlideError
from mclst.runtime.inference.providers import open_session
from mclst.runtime.serving.server_manifest import check_servable

SHAPED_BY = ("mclst", "torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "numpy")
"""Packages whose versions can change a bundle's content."""

Change = dict[str, Any]
"""Settings' fields to override, nested as in Settings; what is absent keeps its default."""


@dataclass(frozen=True)
class Reference:
    """What the bank is made of, before it is encoded."""

    sections: list[ReferenceSection]
    genes: Genes
    pictured: list[SectionImage]


def export_bundle(
    ckpt: str | Path,
    out: str | Path = "mclst-bundle",
    *,
    system: str | None = None,
    references: Sequence[str | Path] = (),
    sections: str | None = None,
    hold_out: Sequence[str] = (),
    genes: str | Path | None = None,
    change: Change | None = None,
    overwrite: bool = False,
    parity_tiles: int = 64,
    engines: EngineWishes | None = None,
    precisions: Precisions = FP32_ALONE,
    by_tiles: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Bundle:
    """Export `ckpt` to the folder `out`; nothing is left there when anything fails.

    system: its name, in place of recognising it. references: of a retrieval system, what its bank is made of.
    sections: names and ranges ("A2-G3,H1") over the sorted names of what the references hold, None for all.
    hold_out: names left out of the bank. genes: file with the model's gene names in order.
    change: overrides of the checkpoint's own settings, or of its system's published defaults. precisions: graphs to
    write beside the fp32 one. engines: which to build of all of them; None for none. by_tiles: refuse a system whose
    expression comes from a whole slide, by InputError.
    Raises CheckpointError, ReferenceDataError, SectionError, SlideError, ParityError, OutputError; ResourceError where
    what builds engines is missing.
    """
    out = Path(out)
    for path in precisions.calibration:
        if not path.is_file():
            raise SlideError(f"{path} is not a file; give a slide with --calibration")
    builder = None if engines is None else EngineBuilder(engines)
    with BundleDraft(out, overwrite=overwrite) as draft:
        checkpoint = open_checkpoint(ckpt, system)
        if by_tiles:
            check_servable(checkpoint.system.kind, f"{checkpoint.path} is {checkpoint.system.title}")
        settings = settle(checkpoint, change or {})
        depth = f", depth {checkpoint.traits.depth}" if checkpoint.traits.depth else ""
        say(
            f"{checkpoint.path.name}: {checkpoint.system.title}, {checkpoint.encoder}, {checkpoint.genes} genes{depth}"
        )
        if checkpoint.system.kind == "retrieval":
            reference = _reference(
                checkpoint, [Path(p) for p in references], sections, hold_out, genes, settings, say
            )
            fields = _write_retrieval(
                draft.part, checkpoint, settings, reference, parity_tiles, precisions, say
            )
        else:
            if references or sections or hold_out:
                raise ReferenceDataError(
                    f"{checkpoint.path} is {checkpoint.system.title}, whose expression comes from the network and not "
                    "from reference sections; leave --reference, --sections and --hold-out out"
                )
            if precisions.limits.overlap is not None or precisions.limits.cosine is not None:
                raise CheckpointError(
                    f"{checkpoint.path} is {checkpoint.system.title}, which has no bank whose neighbours could overlap; "
                    "leave --min-overlap and --min-cosine out, --min-pearson judges it"
                )
            names = listed_genes(checkpoint, None if genes is None else Path(genes))
            fields = write_no_bank_bundle(
                draft.part, checkpoint, settings, names.names, parity_tiles, precisions, say
            )
            fields["genes_from"] = names.source
        if builder is not None:
            builder.build(draft.part, say)
        return draft.seal(**_fields(checkpoint, settings), **fields)


def _write_retrieval(
    folder: Path,
    checkpoint: Checkpoint,
    settings: Settings,
    reference: Reference,
    parity_tiles: int,
    precisions: Precisions,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Bank, graph and their proof; the manifest's fields for them."""
    rows = sum(len(s.spot) for s in reference.sections)
    if settings.retrieval.k > rows:
        raise ReferenceDataError(
            f"k is {settings.retrieval.k} and the reference sections have {rows} spots together; "
            f"give --k of at most {rows}, or more sections"
        )
    say(f"encoding {rows} reference spots of {len(reference.sections)} sections")
    bank = encode_bank(checkpoint, reference.sections, reference.genes.names, settings)
    if not np.ptp(bank.expression):
        raise ReferenceDataError(
            "the reference sections hold no expression of the model's genes; give others"
        )
    write_whole(folder / BANK, bank_bytes(bank))
    say(f"tracing {checkpoint.encoder} to ONNX")
    network = checkpoint.network(heads=settings.heads if "heads" in checkpoint.system.applies else None)
    write_graph(network, settings.tile, settings.preprocessing, folder / ENCODER)
    tiles, calibration = _parity_tiles(checkpoint, reference, settings, parity_tiles, precisions, say)
    say(f"proving parity on {tiles}")
    expected = encode_with_checkpoint(network, tiles.pixels, settings)
    parity = prove(expected, open_session(folder / ENCODER, "cpu"), tiles, bank, settings)
    parity = judge_fp32(parity, precisions, tiles)
    parity["precisions"] = add_precisions(
        folder,
        precisions,
        calibration,
        tiles,
        lambda encoder, _: compare_export(expected, open_session(encoder, "cpu"), tiles, bank, settings),
        say,
    )
    write_whole(folder / PARITY, (json.dumps(parity, indent=2, allow_nan=False) + "\n").encode())
    parts = settings.model_dump(mode="json")
    fields = {
        "genes_from": reference.genes.source,
        "retrieval": parts["retrieval"],
        "bank": [{"name": s.name, "spots": len(s.spot)} for s in reference.sections],
    }
    if "context" in checkpoint.system.applies:
        fields["context"] = parts["context"]
        fields["spot_encoder"] = {"heads": settings.heads, "depth": checkpoint.traits.depth}
    return fields


def settle(checkpoint: Checkpoint, change: Change) -> Settings:
    """The checkpoint's own settings where it carries any, else its system's, with `change` applied.

    Raises CheckpointError where a change does not apply to the system, a setting no checkpoint holds is not given, or
    the carried settings, or the result, are out of range.
    """
    system = checkpoint.system
    carried = checkpoint.carried.get("config", {})
    _check_applies(checkpoint, change)
    for required in system.required:
        part, name = required.split(".")
        if name not in change.get(part, {}) and name not in carried.get(part, {}):
            raise CheckpointError(
                f"{checkpoint.path} is {system.title}, whose checkpoints do not hold the {name} it was trained with; "
                f"give it with --{name}"
            )
    try:
        merged = Settings().model_dump(mode="json")
        for layer in (
            system.settings,
            json.loads(Settings.model_validate_json(json.dumps(carried)).model_dump_json(exclude_unset=True)),
            change,
        ):
            for part, fields in layer.items():
                merged[part] = {**merged[part], **fields} if isinstance(fields, dict) else fields
        return Settings.model_validate_json(json.dumps(merged))
    except (ValidationError, TypeError, KeyError) as error:
        where, what = "config", str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where, what = ".".join(str(part) for part in first["loc"]), first["msg"].lower()
        raise CheckpointError(f"{checkpoint.path}: setting {where}: {what}; correct the option") from error


def _check_applies(checkpoint: Checkpoint, change: Change) -> None:
    system = checkpoint.system
    named = [
        (part, name)
        for part, fields in change.items()
        for name in (fields if isinstance(fields, dict) else [""])
    ]
    for part, name in named:
        if part in ("heads", "context", "graph"):
            fits = part in system.applies
        elif name == "symmetries":
            fits = name in system.applies
        else:
            fits = system.kind == "retrieval" or (
                part != "retrieval" and (part, name) != ("normalisation", "input")
            )
        if not fits:
            what = f"{part}.{name}" if name else part
            raise CheckpointError(
                f"{checkpoint.path} is {system.title}, to which the setting {what} does not apply; leave the option out"
            )


def _reference(
    checkpoint: Checkpoint,
    paths: Sequence[Path],
    sections: str | None,
    hold_out: Sequence[str],
    genes: str | Path | None,
    settings: Settings,
    say: Callable[[str], None],
) -> Reference:
    if paths:
        sources = find_references(paths, sections, hold_out)
        gene_list = None if genes is None else Path(genes)
        raw = {settings.normalisation.input, settings.normalisation.expression} == {"none"}
        cut, names, pictured = read_references(
            sources,
            lambda first: model_genes(checkpoint, paths, gene_list, first),
            lambda text: None if raw else say(f"Warning: {text}"),
        )
        return Reference(cut, names, pictured)
    if not checkpoint.carried.get("sections"):
        raise ReferenceDataError(
            f"{checkpoint.path} carries no reference sections; give the measured sections with --reference"
        )
    if sections or hold_out or genes:
        raise ReferenceDataError("--sections, --hold-out and --genes choose from a --reference; give one")
    carried, names = carried_sections(checkpoint)
    return Reference(carried, names, [])


def _parity_tiles(
    checkpoint: Checkpoint,
    reference: Reference,
    settings: Settings,
    count: int,
    precisions: Precisions,
    say: Callable[[str], None],
) -> tuple[Tiles, Tiles | None]:
    """Tiles to prove parity on and, where int8 is asked for and there are any, others to calibrate on."""
    more = precisions.calibration_tiles
    slides = (
        slide_tiles(precisions.calibration, settings.tile, more)
        if precisions.calibrated and precisions.calibration
        else None
    )
    share = 2 if precisions.calibrated and slides is None else 1
    carried, size = checkpoint.carried.get("tiles"), settings.tile.size_px
    if (
        isinstance(carried, Tensor)
        and carried.dtype == torch.uint8
        and len(carried)
        and carried.shape[1:] == (size, size, 3)
    ):
        source = "the training sections, carried in the checkpoint"
        tiles = Tiles(carried[::share][:count].numpy(), source)
        rest = Tiles(carried[1::2][:more].numpy(), source) if len(carried) > 1 else None
        return tiles, slides or rest
    found = real_tiles(reference.pictured, settings.tile, count, say)
    if found and precisions.calibrated and slides is None:
        slides = real_tiles(reference.pictured, settings.tile, more, lambda text: None, without=found)
    return found or made_up_tiles(settings.tile, count), slides


def _fields(checkpoint: Checkpoint, settings: Settings) -> dict[str, Any]:
    parts = settings.model_dump(mode="json")
    return {
        "kind": checkpoint.system.kind,
        "system": checkpoint.system.name,
        "encoder": {"name": checkpoint.encoder, "embedding_dim": checkpoint.traits.width},
        **{name: parts[name] for name in ("tile", "preprocessing", "normalisation")},
        "genes": checkpoint.genes,
        "checkpoint": {"name": checkpoint.path.name, "sha256": checkpoint.sha256},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in SHAPED_BY}},
    }
