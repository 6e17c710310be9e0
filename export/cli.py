"""`mclst-export`: options → export_bundle → exit status."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from mclst.export.triton.options import (
    check_repository,
    serve,
    serve_bundle,
    serving,
    serving_options,
)
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.bundle.bundle import PRECISIONS, Bundle
from mclst.runtime.cli.bundle_options import retrieval_options
from mclst.runtime.console import (
    Bytes,
    Finite,
    Numbers,
    check_json,
    command,
    publish_json,
    say,
    table,
)
from mclst.runtime.encoder.tensorrt.library import FLAVOURS
from mclst.runtime.errors import ResourceError
from mclst.sections.normalize import NORMALIZATIONS

PATH = click.Path(path_type=Path)


class PrecisionList(click.ParamType[tuple[str, ...]]):
    """Precisions with commas between."""

    name = "|".join(PRECISIONS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text → tuple of precisions; anything else is wrong usage."""
        found = tuple(part.strip() for part in str(value).split(","))
        for part in found:
            if part not in PRECISIONS:
                self.fail(f"{part!r} is none of {', '.join(PRECISIONS)}", param, ctx)
        return found


def _change(options: dict[str, Any]) -> dict[str, Any]:
    """Options that were given → Settings' fields."""
    places = {
        "heads": ("heads", None),
        "tile_px": ("tile", "size_px"),
        "tile_mpp": ("tile", "mpp"),
        "pad": ("tile", "pad"),
        "channels": ("preprocessing", "channels"),
        "pixel_range": ("preprocessing", "pixel_range"),
        "mean": ("preprocessing", "mean"),
        "std": ("preprocessing", "std"),
        "k": ("retrieval", "k"),
        "rank": ("retrieval", "rank"),
        "distance": ("retrieval", "distance"),
        "weighting": ("retrieval", "weighting"),
        "temperature": ("retrieval", "temperature"),
        "context": ("context", "spots"),
        "sentences": ("context", "sentences"),
        "positions": ("context", "positions"),
        "axes": ("preprocessing", "axes"),
        "symmetries": ("preprocessing", "symmetries"),
        "neighbours": ("graph", "neighbours"),
        "prune": ("graph", "prune"),
        "input_normalisation": ("normalisation", "input"),
        "expression_normalisation": ("normalisation", "expression"),
    }
    change: dict[str, Any] = {}
    for option, (part, name) in places.items():
        if options[option] is None:
            continue
        if name is None:
            change[part] = options[option]
        else:
            change.setdefault(part, {})[name] = options[option]
    return change


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--ckpt", type=PATH, help="Trained checkpoint: .pt, .ckpt or .safetensors.  [required]")
@click.option("--system", help="Which system the checkpoint is of, such as bleep.  [default: recognised]")
@click.option("--out", type=PATH, default=Path("mclst-bundle"), help="Folder of the bundle.")
@click.option(
    "--reference",
    "references",
    type=PATH,
    multiple=True,
    help="Measured sections for the bank: a folder of legacy ST sections, Space Ranger outs/, or .h5ad; repeatable.",
)
@click.option(
    "--sections",
    help="Sections of the references to take: names and ranges, such as A2-G3,H1.  [default: all]",
)
@click.option("--hold-out", multiple=True, help="Section to leave out of the bank; repeatable.")
@click.option(
    "--genes",
    type=PATH,
    help="The model's genes in order: .txt, .tsv or .npy; needed where there is no reference.  "
    "[default: genes.txt beside the sections]",
)
@retrieval_options(RetrievalSpec())
@click.option("--heads", type=click.IntRange(1), help="Attention heads of the spot encoder.  [default: 8]")
@click.option("--context", type=click.IntRange(1), help="Spots per Transformer sentence.  [default: 32]")
@click.option(
    "--sentences",
    type=click.Choice(("file", "section")),
    help="Whether sentences run on over section borders or start anew at each.  [default: file]",
)
@click.option(
    "--positions",
    type=click.Choice(("array", "pixel", "none")),
    help="What indexes the position tables; none to leave positions out.  [default: array]",
)
@click.option(
    "--input-normalisation",
    type=click.Choice(tuple(NORMALIZATIONS)),
    help="Of the spot encoder's input.  [default: spot-wise]",
)
@click.option(
    "--expression-normalisation",
    type=click.Choice(tuple(NORMALIZATIONS)),
    help="Of the expression that is averaged, and so of the map.  [default: gene-wise]",
)
@click.option(
    "--tile-px", type=click.IntRange(8, 4096), help="Tile side the encoder was trained on.  [default: 224]"
)
@click.option(
    "--tile-mpp",
    type=Finite(0.01, 100, min_open=True, max_open=True),
    help="µm/px it was trained at.  [default: level-0 pixels as they are]",
)
@click.option("--pad", type=Numbers(int, 0, 255), help="RGB outside the slide.  [default: 0,0,0]")
@click.option(
    "--channels", type=click.Choice(("rgb", "bgr")), help="Channel order it was trained on.  [default: rgb]"
)
@click.option(
    "--pixel-range",
    type=click.Choice(("0-1", "0-255")),
    help="Pixel values it was trained on.  [default: 0-1]",
)
@click.option("--mean", type=Numbers(float), help="Subtracted after scaling, per channel.  [default: 0,0,0]")
@click.option(
    "--std", type=Numbers(float, 1e-6, 1e6), help="Divided by after scaling, per channel.  [default: 1,1,1]"
)
@click.option(
    "--axes",
    type=click.Choice(("row-major", "x-major")),
    help="Axes of the tiles it was trained on.  [default: row-major; x-major for the 112 px systems]",
)
@click.option(
    "--average",
    "symmetries",
    is_flag=True,
    flag_value=8,
    default=None,
    type=int,
    help="ST-Net: the mean over each tile's eight rotations and reflections, inside the graph.",
)
@click.option(
    "--neighbours", type=click.IntRange(1, 64), help="Neighbours per spot in the slide's graph.  [default: 4]"
)
@click.option(
    "--prune",
    type=click.Choice(("none", "grid", "std")),
    help="Which neighbours the graph drops for their distance.  [default: grid for Hist2ST, none for THItoGene]",
)
@click.option(
    "--precision",
    "wanted",
    type=PrecisionList(),
    multiple=True,
    metavar=",".join(PRECISIONS),
    help="Graphs to write beside the fp32 one, such as fp16,int8; repeatable.  [default: fp32 alone]",
)
@click.option(
    "--calibration",
    type=PATH,
    multiple=True,
    metavar="SLIDE",
    help="Slide whose tissue calibrates int8; repeatable.  [default: the reference's own tiles]",
)
@click.option(
    "--calibration-tiles", type=click.IntRange(2, 4096), default=64, help="Tiles that int8 is calibrated on."
)
@click.option(
    "--calibration-method",
    "method",
    type=click.Choice(("percentile", "entropy")),
    default="percentile",
    help="How int8 cuts an activation's range: at 99.99 % of its values, or by least KL divergence.",
)
@click.option(
    "--min-pearson",
    type=Finite(-1, 1),
    help="Least mean Pearson r per gene between export and checkpoint.  "
    "[default: fp16 0.998, bf16 0.995, int8 0.985]",
)
@click.option(
    "--min-overlap",
    type=Finite(0, 1),
    help="Least mean overlap of the 50 nearest reference spots.  [default: fp16 0.98, bf16 0.93, int8 0.85]",
)
@click.option(
    "--min-cosine",
    type=Finite(-1, 1),
    help="Least cosine between the embeddings of a tile.  [default: fp16 0.999, bf16 0.99, int8 0.98]",
)
@click.option(
    "--parity-tiles",
    type=click.IntRange(4, 4096),
    default=64,
    help="Tiles on which export and checkpoint are compared.",
)
@click.option(
    "--engine",
    type=click.Choice(("none", *FLAVOURS)),
    default="none",
    help="Engines to put into the bundle: of tensorrt for the GPU of this machine, of tensorrt-rtx for --target, "
    "without a GPU. mclst-infer builds one that is missing.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 4096),
    default=64,
    help="Tiles an engine takes at once, at most.",
)
@click.option(
    "--target",
    "targets",
    metavar="sm_86,…",
    callback=lambda ctx, param, value: _targets(value),
    help="Compute capabilities of --engine tensorrt-rtx.  [default: sm_80,sm_86,sm_89,sm_120]",
)
@click.option(
    "--workspace",
    type=Bytes(),
    help="Memory that building and running an engine may use beside its weights, such as 2GB.  [default: all]",
)
@click.option("--timing-cache", type=PATH, help="File in which --engine tensorrt keeps what it timed.")
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Engines of tensorrt that later versions run, with the lean runtime of this one installed there.",
)
@click.option(
    "--hardware-compatible",
    is_flag=True,
    help="Engines of tensorrt that any GPU from Ampere on runs; may be slower.",
)
@serving_options
@click.option("--overwrite", is_flag=True, help="Replace a bundle, or a repository, of that name.")
@click.option("--json", "json_path", type=PATH, help="Write manifest and parity as JSON; - for stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.version_option(package_name="mclst")
@command
def main(
    ckpt: Path | None,
    system: str | None,
    out: Path,
    references: tuple[Path, ...],
    sections: str | None,
    hold_out: tuple[str, ...],
    genes: Path | None,
    wanted: tuple[tuple[str, ...], ...],
    calibration: tuple[Path, ...],
    calibration_tiles: int,
    method: Any,
    min_pearson: float | None,
    min_overlap: float | None,
    min_cosine: float | None,
    parity_tiles: int,
    engine: str,
    max_batch: int,
    targets: tuple[str, ...],
    workspace: int | None,
    timing_cache: Path | None,
    version_compatible: bool,
    hardware_compatible: bool,
    bundle_path: Path | None,
    triton: Path | None,
    overwrite: bool,
    json_path: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Turn a trained checkpoint into a bundle that mclst-infer runs.

    Traces the image encoder to ONNX with its preprocessing inside, encodes the reference sections into the bank,
    proves that the export gives what the checkpoint gives, and writes it all to one folder, or nothing. With
    --precision the graph is also written in half precision or int8, each held to what it must keep of the expression.

    The system is recognised: mclSTExp and BLEEP take a --reference, ST-Net, HisToGene, Hist2ST and THItoGene the names
    of their --genes. The defaults shown are those of the published mclSTExp HER2+ scripts; another system has its own
    published ones, and a checkpoint trained by mclst brings its own.

    With --triton it also writes a model repository for NVIDIA Triton, of this bundle or of a --bundle that is there.
    """
    how = serving(triton, options, max_batch, engine)
    if triton is not None and bundle_path is not None:
        serve_bundle(bundle_path, triton, how, overwrite=overwrite, json_path=json_path, quiet=quiet)
        return
    if ckpt is None:
        raise click.UsageError("Missing option '--ckpt'.")
    check_json(
        json_path, overwrite=overwrite, inputs=(ckpt, *references, *calibration, genes), outputs=(out, triton)
    )
    check_repository(triton, overwrite, (ckpt, *references, *calibration, genes), out)
    asked = tuple(precision for some in wanted for precision in some)
    if triton is not None and how.precision not in ("fp32", *asked):
        raise click.UsageError(f"--triton-precision {how.precision} wants --precision {how.precision}")
    if calibration and "int8" not in asked:
        raise click.UsageError("--calibration belongs to --precision int8")
    _check_engine_options(engine, targets, timing_cache, version_compatible or hardware_compatible)
    try:
        from mclst.export.bundling import export_bundle
        from mclst.export.engines import EngineWishes
        from mclst.export.parity.precisions import Precisions
        from mclst.export.parity.tolerances import Gate
    except ImportError as error:
        raise ResourceError(f"{error.name} is not installed; install mclst[export,cpu]") from error
    wishes = EngineWishes(
        "tensorrt" if engine == "tensorrt" else "tensorrt-rtx",
        max_batch,
        targets,
        workspace,
        timing_cache,
        version_compatible,
        hardware_compatible,
    )
    bundle = export_bundle(
        ckpt,
        out,
        system=system,
        references=references,
        sections=sections,
        hold_out=hold_out,
        genes=genes,
        change=_change(options),
        overwrite=overwrite,
        parity_tiles=parity_tiles,
        precisions=Precisions(
            asked, calibration, calibration_tiles, method, Gate(min_cosine, min_overlap, min_pearson)
        ),
        engines=None if engine == "none" else wishes,
        by_tiles=triton is not None,
        say=lambda text: say(text, quiet=quiet),
    )
    parity = json.loads((bundle.path / "parity.json").read_text())
    m = bundle.manifest
    table(_summary(bundle, parity), quiet=quiet)
    if triton is not None:
        serve(bundle, triton, how, overwrite=overwrite, quiet=quiet)
    if json_path is not None:
        content = {"bundle": str(bundle.path), "manifest": m.model_dump(mode="json"), "parity": parity}
        if triton is not None:
            content["triton"] = str(triton)
        publish_json(json_path, content)
    if json_path is None or str(json_path) != "-":
        click.echo(str(bundle.path))


def _targets(value: str | None) -> tuple[str, ...]:
    found = tuple(target.strip().lower() for target in (value or "").split(",") if target.strip())
    for target in found:
        if not re.fullmatch(r"sm_\d{2,3}", target):
            raise click.BadParameter(f"{target!r} is no compute capability such as sm_86")
    return tuple(dict.fromkeys(found))


def _check_engine_options(
    engine: str, targets: tuple[str, ...], timing_cache: Path | None, compatible: bool
) -> None:
    if targets and engine != "tensorrt-rtx":
        raise click.UsageError(
            "--target belongs to --engine tensorrt-rtx; tensorrt builds for the GPU it finds"
        )
    if (timing_cache is not None or compatible) and engine != "tensorrt":
        raise click.UsageError(
            "--timing-cache, --version-compatible and --hardware-compatible belong to --engine tensorrt"
        )


def _summary(bundle: Bundle, parity: dict[str, Any]) -> list[tuple[str, Any]]:
    m, r = bundle.manifest, bundle.manifest.retrieval
    given = f"{m.encoder.embedding_dim}-d embedding" if m.kind != "regression" else "expression"
    rows: list[tuple[str, Any]] = [
        ("bundle", bundle.path),
        ("encoder", f"{m.encoder.name}, {m.tile.size_px} px tiles, {given}"),
    ]
    if r is not None:
        rows += [
            (
                "bank",
                f"{m.bank_rows} spots of {len(m.bank)} sections, {m.genes} genes in the order of {m.genes_from}",
            ),
            ("retrieval", f"k {r.k}, rank {r.rank}, distance {r.distance}, weighting {r.weighting}"),
        ]
    else:
        rows.append(("genes", f"{m.genes}, straight from the network, in the order of {m.genes_from}"))
    if m.sequence is not None:
        graph = m.sequence.graph
        about = f", graph of {graph.neighbours} neighbours, prune {graph.prune}" if graph else ""
        rows.append(("sequence", f"depth {m.sequence.depth}, {m.sequence.heads} heads{about}"))
    embedding = f"embedding within {parity['embedding']['max_abs']:.1e}, " if "embedding" in parity else ""
    tiles = f"{parity['tiles']['count']} tiles of {parity['tiles']['source']}"
    apart = f"{embedding}expression within {parity['expression']['max_abs']:.1e}"
    rows.append(("parity", f"{apart} of the checkpoint on {tiles}"))
    rows += [(name, _kept(found)) for name, found in parity["precisions"].items()]
    return rows


def _kept(found: dict[str, Any]) -> str:
    """What a precision kept of the checkpoint, in a line."""
    r = found["expression"]["pearson_per_gene_mean"]
    parts = ["Pearson r per gene " + ("undefined" if r is None else f"{r:.5f}")]
    if "neighbours" in found:
        overlap, cosine = found["neighbours"]["overlap_at_50"], found["embedding"]["cosine_min"]
        parts += [f"overlap of the 50 nearest {overlap:.3f}", f"cosine at least {cosine:.5f}"]
    if "measured" in found:
        parts.append(f"r against the measured {found['measured']['change']:+.5f}")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
