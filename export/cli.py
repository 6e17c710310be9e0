"""`mclst-export`: options → export_bundle → exit status."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.export.options import (
    engine_options,
    input_options,
    metadata_options,
    output_options,
    precision_options,
    settings_options,
    settings_overrides,
)
from mclst.export.triton_options import (
    check_repository,
    parse_serving,
    publish_repository,
    repository_of_bundle,
    triton_options,
)
from mclst.export.wsinfer_options import check_wsinfer, publish_wsinfer, wsinfer_options
from mclst.runtime.atomic import check_distinct
from mclst.runtime.click_types import SETTINGS, given_inputs, refuse_unowned
from mclst.runtime.console import check_json, command, publish_result, say, table
from mclst.runtime.errors import needs_extra
from mclst.runtime.section_options import SectionFiles, section_options
from mclst.sections.location import SlideLocation

if TYPE_CHECKING:
    from mclst.export.engines import EngineOptions
    from mclst.runtime.bundle.bundle import Bundle
    from mclst.runtime.progress import Notify


@click.command(context_settings=SETTINGS)
@input_options
@section_options
@settings_options
@precision_options
@engine_options
@triton_options
@wsinfer_options
@metadata_options
@output_options
@click.version_option(package_name="mclst")
@command
def main(
    ckpt: Path | None,
    weights: Path | None,
    system: str | None,
    out: Path,
    references: tuple[Path, ...],
    sections: str | None,
    hold_out: tuple[str, ...],
    section_files: SectionFiles,
    genes: Path | None,
    precisions: tuple[tuple[str, ...], ...],
    calibration: tuple[SlideLocation, ...],
    calibration_tiles: int,
    method: Any,
    min_pearson: float | None,
    min_overlap: float | None,
    min_cosine: float | None,
    parity_tiles: int,
    kept_tiles: int,
    calibrate: bool,
    groups: str,
    unseen: bool,
    license_name: str | None,
    metadata_path: Path | None,
    bundle_path: Path | None,
    triton: Path | None,
    overwrite: bool,
    json_path: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Turn a trained checkpoint into a bundle that mclst-infer runs.

    Traces the image encoder to ONNX with its preprocessing, encodes the reference sections into the bank, and
    proves that the export matches the checkpoint. Writes everything to one folder, or nothing. Graphs in half
    precision and int8 are added, each where it passes its gate; one named by --precision must pass.

    The system is recognized: mclSTExp and BLEEP need a --reference; ST-Net, HisToGene, Hist2ST and THItoGene
    need --genes, and a --reference with slides to be calibrated. The defaults shown are those of the
    published mclSTExp HER2+ scripts. Other systems have their own published defaults, and a checkpoint
    trained by mclst stores its own.

    --triton also writes a model repository for NVIDIA Triton, of this bundle or of an existing --bundle;
    --wsinfer a model for QuPath's WSInfer extension.
    """
    serving = parse_serving(triton, options)
    if triton is not None and bundle_path is not None:
        repository_of_bundle(
            bundle_path, triton, serving, overwrite=overwrite, json_path=json_path, quiet=quiet
        )
        return
    if ckpt is None:
        raise click.UsageError("Missing option '--ckpt'.")
    inputs = (*given_inputs(), *section_files.paths)
    check_json(json_path, overwrite=overwrite, inputs=inputs, outputs=(out, triton, options["wsinfer"]))
    check_distinct((out,), inputs, inside=False)
    check_repository(triton, overwrite, inputs, out)
    check_wsinfer(options, overwrite, inputs, out)
    names = tuple(name for group in precisions for name in group)
    if names and triton is not None and serving.precision not in ("fp32", *names):
        raise click.UsageError(
            f"--triton-precision {serving.precision} needs --precision {serving.precision}"
        )
    if calibration and names and "int8" not in names:
        raise click.UsageError("--calibration belongs to --precision int8")
    if names and "int8" not in names:
        refuse_unowned("--precision int8", "calibration_tiles", "method")
    if not calibrate:
        refuse_unowned("--calibrate", "groups", "unseen")
    if options["engine"] == "none" and triton is None:
        refuse_unowned("--engine and --triton", "max_batch")
    _check_engine_options(options)
    with needs_extra("export,cpu"):
        from mclst.export.bundling import export_bundle
        from mclst.export.metadata import read_metadata
        from mclst.export.parity.precisions import REDUCED, PrecisionOptions
        from mclst.export.parity.tolerances import Gate
        from mclst.export.summary import summarize

        engines = _engine_options(options)
    limits = Gate(min_cosine, min_overlap, min_pearson)
    # What serves or is calibrated was asked for by name.
    needed = {"int8"} if calibration else set()
    needed |= {serving.precision} if triton is not None else set()
    optional = () if names else tuple(name for name in REDUCED if name not in needed)
    bundle = export_bundle(
        ckpt,
        out,
        system=system,
        weights=weights,
        references=references,
        sections=sections,
        hold_out=hold_out,
        genes=genes,
        overrides=settings_overrides(options),
        overwrite=overwrite,
        parity_tiles=parity_tiles,
        kept_tiles=kept_tiles,
        precisions=PrecisionOptions(
            names or REDUCED, optional, calibration, calibration_tiles, method, limits
        ),
        engines=engines,
        require_servable=triton is not None,
        calibrated=calibrate,
        groups=groups,
        unseen=unseen,
        metadata=read_metadata(metadata_path, license_name),
        section_files=section_files,
        say=lambda text: say(text, quiet=quiet),
    )
    parity = json.loads((bundle.path / "parity.json").read_text())
    table(summarize(bundle, parity), quiet=quiet)
    if bundle.precisions != ("fp32",):
        _try_encoders(bundle, lambda text: say(text, quiet=quiet))
    if triton is not None:
        publish_repository(bundle, triton, serving, overwrite=overwrite, quiet=quiet)
    if options["wsinfer"] is not None:
        overrides = settings_overrides(options)
        publish_wsinfer(bundle, ckpt, weights, system, overrides, options, overwrite=overwrite)

    def content() -> dict[str, Any]:
        manifest = bundle.manifest.model_dump(mode="json")
        served = {} if triton is None else {"triton": str(triton)}
        return {"bundle": str(bundle.path), "manifest": manifest, "parity": parity, **served}

    publish_result(json_path, content, bundle.path)


def _try_encoders(bundle: Bundle, notify: Notify) -> None:
    """Measure what runs the bundle fastest here, so that the first run on this machine knows."""
    from mclst.runtime.encoder.session import DEFAULT_BATCH_SIZE
    from mclst.runtime.inference.loaded_model import LoadedModel
    from mclst.runtime.providers.candidates import ChoiceRequest

    request = ChoiceRequest("auto", "auto", DEFAULT_BATCH_SIZE, build=False)
    LoadedModel(bundle).choose_encoder(request, notify)


def _check_engine_options(options: dict[str, Any]) -> None:
    if options["engine"] == "none":
        refuse_unowned("--engine", "workspace")
    if options["targets"] and options["engine"] != "tensorrt-rtx":
        raise click.UsageError(
            "--target belongs to --engine tensorrt-rtx; tensorrt builds for the GPU it finds"
        )
    only_tensorrt = ("timing_cache", "version_compatible", "hardware_compatible")
    if options["engine"] != "tensorrt" and any(options[name] for name in only_tensorrt):
        raise click.UsageError(
            "--timing-cache, --version-compatible and --hardware-compatible belong to --engine tensorrt"
        )


def _engine_options(options: dict[str, Any]) -> EngineOptions | None:
    from mclst.export.engines import EngineOptions

    if options["engine"] == "none":
        return None
    return EngineOptions(
        options["engine"],
        options["max_batch"],
        options["targets"],
        options["workspace"],
        options["timing_cache"],
        options["version_compatible"],
        options["hardware_compatible"],
    )


if __name__ == "__main__":
    sys.exit(main())
