"""Checkpoint and reference sections → bundle: the steps of `mclst-export`, in order."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from mclst.export.bank import ReferenceSection, encode_bank
from mclst.export.checkpoint import Checkpoint, open_checkpoint
from mclst.export.graph import write_graph
from mclst.export.parity import Tiles, prove
from mclst.export.parity_tiles import made_up_tiles, real_tiles
from mclst.export.references import carried_sections, find_references, model_genes, read_references
from mclst.runtime.bank import Bank, bank_bytes
from mclst.runtime.bundle import BANK, ENCODER, PARITY, Bundle, BundleDraft
from mclst.runtime.errors import CheckpointError, ReferenceDataError
from mclst.runtime.manifest import Settings
from mclst.runtime.publish import write_whole
from mclst.runtime.session import open_session
from mclst.sections.section import Section

SHAPED_BY = ("mclst", "torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "numpy")
"""Packages whose versions can change a bundle's content."""

Change = dict[str, Any]
"""Settings' fields to override, nested as in Settings; what is absent keeps its default."""


@dataclass(frozen=True)
class Reference:
    """What the bank is made of, before it is encoded."""

    sections: list[ReferenceSection]
    genes: NDArray[np.str_]
    pictured: list[Section]


def export_bundle(
    ckpt: str | Path,
    out: str | Path = "mclst-bundle",
    *,
    references: Sequence[str | Path] = (),
    sections: str | None = None,
    hold_out: Sequence[str] = (),
    genes: str | Path | None = None,
    change: Change | None = None,
    overwrite: bool = False,
    parity_tiles: int = 64,
    say: Callable[[str], None] = lambda text: None,
) -> Bundle:
    """Export `ckpt` with a bank of `references` to the folder `out`; nothing is left there when anything fails.

    sections: names and ranges ("A2-G3,H1") over the sorted names of what the references hold, None for all.
    hold_out: names left out of the bank. genes: file with the model's gene names in order.
    change: overrides of the checkpoint's own settings, or of the published HER2+ defaults.
    Raises CheckpointError, ReferenceDataError, SectionError, ParityError, OutputError.
    """
    out = Path(out)
    with BundleDraft(out, overwrite=overwrite) as draft:
        checkpoint = open_checkpoint(ckpt)
        settings = settle(checkpoint, change or {})
        say(
            f"{checkpoint.path.name}: {checkpoint.system}, {checkpoint.encoder}, {checkpoint.genes} genes, depth {checkpoint.depth}"
        )
        reference = _reference(checkpoint, [Path(p) for p in references], sections, hold_out, genes)
        rows = sum(len(s.spot) for s in reference.sections)
        if settings.retrieval.k > rows:
            raise ReferenceDataError(
                f"k is {settings.retrieval.k} and the reference sections have {rows} spots together; "
                f"give --k of at most {rows}, or more sections"
            )
        say(f"encoding {rows} reference spots of {len(reference.sections)} sections")
        bank = encode_bank(checkpoint, reference.sections, reference.genes, settings)
        write_whole(draft.part / BANK, bank_bytes(bank))
        say(f"tracing {checkpoint.encoder} to ONNX")
        network = checkpoint.network(heads=settings.heads)
        write_graph(network, settings.tile, settings.preprocessing, draft.part / ENCODER)
        tiles = _parity_tiles(checkpoint, reference, settings, parity_tiles)
        say(f"proving parity on {len(tiles.pixels)} tiles of {tiles.source}")
        parity = prove(network, open_session(draft.part / ENCODER, "cpu"), tiles, bank, settings)
        write_whole(draft.part / PARITY, (json.dumps(parity, indent=2, allow_nan=False) + "\n").encode())
        return draft.seal(**_fields(checkpoint, settings, bank, reference.sections))


def settle(checkpoint: Checkpoint, change: Change) -> Settings:
    """The checkpoint's own settings where it carries any, else the published ones, with `change` applied.

    Raises CheckpointError where the carried settings, or the result, are out of range.
    """
    base = checkpoint.carried.get("config", {})
    try:
        merged = Settings.model_validate_json(json.dumps(base)).model_dump(mode="json")
        for part, fields in change.items():
            merged[part] = {**merged[part], **fields} if isinstance(fields, dict) else fields
        return Settings.model_validate_json(json.dumps(merged))
    except (ValidationError, TypeError, KeyError) as error:
        where, what = "config", str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where, what = ".".join(str(part) for part in first["loc"]), first["msg"].lower()
        raise CheckpointError(f"{checkpoint.path}: setting {where}: {what}; correct the option") from error


def _reference(
    checkpoint: Checkpoint,
    paths: Sequence[Path],
    sections: str | None,
    hold_out: Sequence[str],
    genes: str | Path | None,
) -> Reference:
    if paths:
        sources = find_references(paths, sections, hold_out)
        gene_list = None if genes is None else Path(genes)
        cut, names, pictured = read_references(
            sources, lambda first: model_genes(checkpoint, paths, gene_list, first)
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


def _parity_tiles(checkpoint: Checkpoint, reference: Reference, settings: Settings, count: int) -> Tiles:
    carried = checkpoint.carried.get("tiles")
    if carried is not None and tuple(carried.shape[1:]) == (settings.tile.size_px, settings.tile.size_px, 3):
        return Tiles(carried[:count].numpy(), "the training sections, carried in the checkpoint")
    return real_tiles(reference.pictured, settings.tile, count) or made_up_tiles(settings.tile, count)


def _fields(
    checkpoint: Checkpoint, settings: Settings, bank: Bank, sections: Sequence[ReferenceSection]
) -> dict[str, Any]:
    parts = settings.model_dump(mode="json")
    return {
        "system": checkpoint.system,
        "encoder": {"name": checkpoint.encoder, "embedding_dim": checkpoint.projection_dim},
        **{name: parts[name] for name in ("tile", "preprocessing", "retrieval", "context", "normalisation")},
        "spot_encoder": {"heads": settings.heads, "depth": checkpoint.depth},
        "genes": len(bank.genes),
        "bank": [{"name": s.name, "spots": len(s.spot)} for s in sections],
        "checkpoint": {"name": checkpoint.path.name, "sha256": checkpoint.sha256},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in SHAPED_BY}},
    }
