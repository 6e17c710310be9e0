"""The steps of `mclst-export`: checkpoint and reference sections → bundle."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mclst.export.direct_bundle import write_direct_bundle
from mclst.export.engines import EngineBuilder, EngineOptions
from mclst.export.held_out import Measured, write_calibration
from mclst.export.inputs.checkpoint import Checkpoint, open_checkpoint
from mclst.export.metadata import Metadata, complete_about, essentials, write_gene_table
from mclst.export.onnx.graph import add_metadata
from mclst.export.parity.precisions import FP32_ONLY, PrecisionOptions
from mclst.export.retrieval_bundle import load_measured, load_reference, write_retrieval_bundle
from mclst.export.settings import Overrides, resolve_settings
from mclst.runtime.bundle.about import About
from mclst.runtime.bundle.bank import read_bank
from mclst.runtime.bundle.bundle import BANK, GENES, Bundle, BundleDraft
from mclst.runtime.bundle.manifest import Settings, SlideNetwork
from mclst.runtime.errors import CheckpointError, SlideError
from mclst.runtime.section_options import SectionFiles
from mclst.runtime.serving.server_manifest import check_servable

RECORDED_PACKAGES = ("mclst", "torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "numpy")
"""Packages whose versions can change a bundle's content."""


def export_bundle(
    ckpt: str | Path,
    out: str | Path = "mclst-bundle",
    *,
    system: str | None = None,
    weights: str | Path | None = None,
    references: Sequence[str | Path] = (),
    sections: str | None = None,
    hold_out: Sequence[str] = (),
    genes: str | Path | None = None,
    overrides: Overrides | None = None,
    overwrite: bool = False,
    parity_tiles: int = 64,
    kept_tiles: int = 0,
    engines: EngineOptions | None = None,
    precisions: PrecisionOptions = FP32_ONLY,
    require_servable: bool = False,
    calibrated: bool = True,
    groups: str = "section",
    unseen: bool = False,
    metadata: Metadata | None = None,
    section_files: SectionFiles | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Bundle:
    """Export a checkpoint to a bundle; on failure nothing is left at `out`.

    Parameters
    ----------
    ckpt : str or Path
        Trained checkpoint.
    out : str or Path
        Folder of the bundle.
    system : str, optional
        Name of the checkpoint's system; recognized by default.
    weights : str or Path, optional
        The encoder's weights, for a checkpoint that names them by reference.
    references : sequence of str or Path
        Measured sections: the bank of a retrieval system; any other is calibrated by those with a slide.
    sections : str, optional
        Names and ranges of sections to take, such as "A2-G3,H1", in the sorted order of their names; default
        all.
    hold_out : sequence of str
        Sections to leave out of the bank.
    genes : str or Path, optional
        File with the model's gene names in order.
    overrides : dict, optional
        Fields of `Settings`, nested as there, that replace the checkpoint's or its system's.
    overwrite : bool
        Replace a bundle at `out`.
    parity_tiles : int
        Tiles on which export and checkpoint are compared.
    kept_tiles : int
        Of these, to keep in the bundle.
    engines : EngineOptions, optional
        TensorRT engines to build; none by default.
    precisions : PrecisionOptions
        Graphs to write besides fp32.
    require_servable : bool
        Refuse a system that predicts whole slides, which a tile server cannot run.
    calibrated : bool
        Predict each reference section from the others where that can be done; see `write_calibration`.
    groups : {"section", "patient"}
        What is left out together; a checkpoint of `mclst-fit` has its own.
    unseen : bool
        Whether the network is known not to have been trained on the reference sections.
    metadata : Metadata, optional
        What the bundle says of itself; nothing by default.
    section_files : SectionFiles, optional
        Slides and gene names of the references.
    say : callable, optional
        Called with progress messages.

    Returns
    -------
    Bundle

    Raises
    ------
    CheckpointError
        If the checkpoint cannot be read, recognized or traced, or a setting or `groups` does not fit it.
    ReferenceDataError, SectionError
        If the reference sections do not make a bank.
    SlideError
        If a calibration slide cannot be read.
    ParityError
        If a graph differs from the checkpoint beyond tolerance.
    InputError
        If `require_servable` is set and the system predicts whole slides.
    OutputError
        If `out` exists or cannot be written.
    ResourceError
        If engines are requested and cannot be built here.
    """
    for path in precisions.calibration_slides:
        if isinstance(path, Path) and not os.path.exists(path):
            raise SlideError(f"{path} does not exist; give a slide with --calibration")
    builder = None if engines is None else EngineBuilder(engines)
    with BundleDraft(Path(out), overwrite=overwrite) as draft:
        checkpoint = open_checkpoint(ckpt, system, weights=weights)
        if calibrated and groups == "patient" and checkpoint.metadata.get("out_of_fold"):
            raise CheckpointError(
                f"{checkpoint.path} carries predictions of what its fit left out, which --groups cannot "
                "change; leave --groups out, or fit with mclst-fit --groups patient"
            )
        kind, title = checkpoint.system.kind, checkpoint.system.title
        settings = resolve_settings(checkpoint, overrides or {})
        if require_servable:
            check_servable(
                checkpoint.system.kind,
                f"{checkpoint.path} is {title}",
                neighborhood=settings.neighborhood is not None,
            )
        depth = f", depth {checkpoint.traits.depth}" if checkpoint.traits.depth else ""
        say(f"{checkpoint.path.name}: {title}, {checkpoint.encoder}, {checkpoint.genes} genes{depth}")
        gene_file = None if genes is None else Path(genes)
        if kind == "retrieval":
            paths = [Path(path) for path in references]
            reference = load_reference(
                checkpoint, paths, sections, hold_out, gene_file, settings, say, section_files
            )
            fields = write_retrieval_bundle(
                draft.part, checkpoint, settings, reference, parity_tiles, precisions, say, kept_tiles
            )
        else:
            if precisions.limits.overlap is not None or precisions.limits.cosine is not None:
                raise CheckpointError(
                    f"{checkpoint.path} is {title}, which has no bank whose neighbors could overlap; leave "
                    "--min-overlap and --min-cosine out, --min-pearson judges it"
                )
            reference = load_measured(
                checkpoint, [*map(Path, references)], sections, hold_out, gene_file, say, section_files
            )
            gene_list = reference.genes
            fields = write_direct_bundle(
                draft.part, checkpoint, settings, gene_list.names, parity_tiles, precisions, say, kept_tiles
            )
            fields["genes_from"] = gene_list.source
        fields = {**_manifest_fields(checkpoint, settings), **fields}
        fields["trained_on"] = training_sections(checkpoint.metadata)
        if calibrated:
            seen = set(fields["trained_on"])
            measured = Measured(
                reference.sections,
                reference.images,
                by_patient=groups == "patient",
                unseen=unseen or bool(seen and seen.isdisjoint(image.name for image in reference.images)),
            )
            fields["calibration"] = write_calibration(
                draft.part,
                checkpoint.metadata,
                settings,
                measured,
                say,
                slide_network=SlideNetwork(**fields["slide_network"]) if "slide_network" in fields else None,
            )
        fields["about"] = _describe(draft.part, checkpoint, fields, metadata or Metadata(About(), {}))
        if builder is not None:
            builder.build(draft.part, say)
        return draft.seal(**fields)


def training_sections(metadata: Mapping[str, Any]) -> list[str]:
    """Names of the sections that a checkpoint of mclst says it was trained or fitted on; else none."""
    trained = [str(section["name"]) for section in metadata.get("sections", ())]
    return trained or [str(name) for name in metadata.get("fit", {}).get("sections", ())]


def _describe(
    folder: Path, checkpoint: Checkpoint, fields: dict[str, Any], metadata: Metadata
) -> dict[str, Any]:
    """Write the gene table and the graphs' metadata_props; return the manifest's `about`."""
    sections = [section["name"] for section in fields.get("bank", ())]
    about = complete_about(metadata.about, checkpoint.metadata, sections)
    genes = gene_names(folder)
    write_gene_table(folder, genes, metadata.gene_ids)
    props = essentials(about, fields, genes)
    for graph in sorted(folder.glob("*.onnx")):
        add_metadata(graph, props)
    return about.model_dump(mode="json")


def gene_names(folder: Path) -> list[str]:
    """Names of the genes of a bundle that is being written."""
    if (folder / GENES).is_file():
        return (folder / GENES).read_text(encoding="utf-8").split("\n")[:-1]
    return [str(gene) for gene in read_bank(folder / BANK).genes]


def _manifest_fields(checkpoint: Checkpoint, settings: Settings) -> dict[str, Any]:
    dumped = settings.model_dump(mode="json")
    return {
        "kind": checkpoint.system.kind,
        "system": checkpoint.system.name,
        "encoder": {
            "name": checkpoint.encoder,
            "embedding_dim": checkpoint.traits.width,
            "prediction_dim": checkpoint.traits.prediction,
        },
        **{name: dumped[name] for name in ("tile", "preprocessing", "neighborhood", "normalization")},
        "genes": checkpoint.genes,
        "checkpoint": {"name": checkpoint.path.name, "sha256": checkpoint.sha256},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in RECORDED_PACKAGES},
        },
    }
