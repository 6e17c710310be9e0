"""Options of `mclst-export`, free of heavy imports so that `--help` is fast."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.choices import PRECISIONS
from mclst.runtime.cli.bundle_options import retrieval_options
from mclst.runtime.cli.slide_argument import SlideArgument
from mclst.runtime.click_types import PATH, AliasedOption, Bytes, Finite, Numbers, add_options
from mclst.runtime.encoder.tensorrt.library import FLAVORS
from mclst.sections.normalization_names import NORMALIZATION_NAMES

SETTINGS = {
    "heads": "heads",
    "tile_px": "tile.size_px",
    "tile_mpp": "tile.mpp",
    "pad": "tile.pad",
    "channels": "preprocessing.channels",
    "pixel_range": "preprocessing.pixel_range",
    "mean": "preprocessing.mean",
    "std": "preprocessing.std",
    "axes": "preprocessing.axes",
    "symmetries": "preprocessing.symmetries",
    "k": "retrieval.k",
    "rank": "retrieval.rank",
    "distance": "retrieval.distance",
    "weighting": "retrieval.weighting",
    "temperature": "retrieval.temperature",
    "context": "context.spots",
    "sentences": "context.sentences",
    "positions": "context.positions",
    "neighbors": "graph.neighbors",
    "prune": "graph.prune",
    "input_normalization": "normalization.input",
    "expression_normalization": "normalization.expression",
}
"""Parameter of the command → field of the manifest's `Settings`."""


def settings_overrides(options: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the options with a value as fields of `Settings`, nested as there."""
    overrides: dict[str, Any] = {}
    for option, setting in SETTINGS.items():
        if options[option] is None:
            continue
        part, _, name = setting.partition(".")
        if name:
            overrides.setdefault(part, {})[name] = options[option]
        else:
            overrides[part] = options[option]
    return overrides


class PrecisionList(click.ParamType[tuple[str, ...]]):
    """Comma-separated precisions."""

    name = "|".join(PRECISIONS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split `value`; an unknown precision is wrong usage."""
        precisions = tuple(part.strip() for part in str(value).split(","))
        for precision in precisions:
            if precision not in PRECISIONS:
                self.fail(f"{precision!r} is none of {', '.join(PRECISIONS)}", param, ctx)
        return precisions


def _parse_targets(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    targets = tuple(target.strip().lower() for target in (value or "").split(",") if target.strip())
    for target in targets:
        if not re.fullmatch(r"sm_\d{2,3}", target):
            raise click.BadParameter(f"{target!r} is no compute capability such as sm_86")
    return tuple(dict.fromkeys(targets))


input_options = add_options(
    click.option("--ckpt", type=PATH, help="Trained checkpoint: .pt, .ckpt or .safetensors.  [required]"),
    click.option(
        "--weights",
        type=PATH,
        help="The encoder's weights, for a checkpoint that names them by reference.",
    ),
    click.option("--system", help="System of the checkpoint, such as bleep.  [default: recognized]"),
    click.option("--out", type=PATH, default=Path("mclst-bundle"), help="Folder of the bundle."),
    click.option(
        "--reference",
        "references",
        type=PATH,
        multiple=True,
        help="Measured sections, or a folder of them, as for mclst-fit; repeatable. "
        "They make the bank; a system without one is calibrated by those with a slide.",
    ),
    click.option(
        "--sections",
        help="Reference sections to use: names and ranges, such as A2-G3,H1.  [default: all]",
    ),
    click.option("--hold-out", multiple=True, help="Section to leave out; repeatable."),
    click.option(
        "--genes",
        type=PATH,
        help="The model's genes in order: .txt, .tsv or .npy; required without a reference.  "
        "[default: genes.txt of the reference]",
    ),
)

settings_options = add_options(
    retrieval_options(RetrievalSpec()),
    click.option(
        "--heads", type=click.IntRange(1), help="Attention heads of the spot encoder.  [default: 8]"
    ),
    click.option("--context", type=click.IntRange(1), help="Spots per Transformer sentence.  [default: 32]"),
    click.option(
        "--sentences",
        type=click.Choice(("file", "section")),
        help="Whether sentences continue over section borders or restart at each.  [default: file]",
    ),
    click.option(
        "--positions",
        type=click.Choice(("array", "pixel", "none")),
        help="Index of the position tables; none for no positions.  [default: array]",
    ),
    click.option(
        "--input-normalization",
        cls=AliasedOption,
        aliases=("--input-normalisation",),
        type=click.Choice(NORMALIZATION_NAMES),
        help="Normalization of the spot encoder's input.  [default: spot-wise]",
    ),
    click.option(
        "--expression-normalization",
        cls=AliasedOption,
        aliases=("--expression-normalisation",),
        type=click.Choice(NORMALIZATION_NAMES),
        help="Normalization of the averaged expression, and so of the map.  [default: gene-wise]",
    ),
    click.option(
        "--tile-px",
        type=click.IntRange(8, 4096),
        help="Tile side the encoder was trained on.  [default: 224]",
    ),
    click.option(
        "--tile-mpp",
        type=Finite(0.01, 100, min_open=True, max_open=True),
        help="µm/px the encoder was trained at.  [default: level-0 pixels]",
    ),
    click.option("--pad", type=Numbers(int, 0, 255), help="RGB outside the slide.  [default: 0,0,0]"),
    click.option(
        "--channels", type=click.Choice(("rgb", "bgr")), help="Channel order of training.  [default: rgb]"
    ),
    click.option(
        "--pixel-range",
        type=click.Choice(("0-1", "0-255")),
        help="Range of pixel values of training.  [default: 0-1]",
    ),
    click.option(
        "--mean", type=Numbers(float), help="Subtracted after scaling, per channel.  [default: 0,0,0]"
    ),
    click.option(
        "--std",
        type=Numbers(float, 1e-6, 1e6),
        help="Divided by after scaling, per channel.  [default: 1,1,1]",
    ),
    click.option(
        "--axes",
        type=click.Choice(("row-major", "x-major")),
        help="Axis order of training tiles.  [default: row-major; x-major for the 112 px systems]",
    ),
    click.option(
        "--average",
        "symmetries",
        is_flag=True,
        flag_value=8,
        default=None,
        type=int,
        help="ST-Net: average each tile's eight rotations and reflections inside the graph.",
    ),
    click.option(
        "--neighbors",
        cls=AliasedOption,
        aliases=("--neighbours",),
        type=click.IntRange(1, 64),
        help="Neighbors per spot in the slide graph.  [default: 4]",
    ),
    click.option(
        "--prune",
        type=click.Choice(("none", "grid", "std")),
        help="Rule that drops distant neighbors.  [default: grid for Hist2ST, none for THItoGene]",
    ),
)

precision_options = add_options(
    click.option(
        "--precision",
        "precisions",
        type=PrecisionList(),
        multiple=True,
        metavar=",".join(PRECISIONS),
        help="Graphs to write besides fp32, such as fp16,int8; fp32 for that alone; repeatable.  "
        "[default: all that pass]",
    ),
    click.option(
        "--calibration",
        type=SlideArgument(),
        multiple=True,
        metavar="SLIDE",
        help="Slide, or its address, whose tissue calibrates int8; repeatable.  "
        "[default: the reference's own tiles]",
    ),
    click.option(
        "--calibration-tiles", type=click.IntRange(2, 4096), default=64, help="Tiles that calibrate int8."
    ),
    click.option(
        "--calibration-method",
        "method",
        type=click.Choice(("percentile", "entropy")),
        default="percentile",
        help="Where int8 clips activations: at 99.99 % of the values, or at the least KL divergence.",
    ),
    click.option(
        "--min-pearson",
        type=Finite(-1, 1),
        help="Least mean Pearson r per gene between export and checkpoint.  "
        "[default: fp16 0.998, bf16 0.995, int8 0.985]",
    ),
    click.option(
        "--min-overlap",
        type=Finite(0, 1),
        help="Least mean overlap of the 50 nearest reference spots.  "
        "[default: fp16 0.98, bf16 0.93, int8 0.85]",
    ),
    click.option(
        "--min-cosine",
        type=Finite(-1, 1),
        help="Least cosine between the embeddings of a tile.  [default: fp16 0.999, bf16 0.99, int8 0.98]",
    ),
    click.option(
        "--parity-tiles",
        type=click.IntRange(4, 4096),
        default=64,
        help="Tiles on which export and checkpoint are compared.",
    ),
    click.option(
        "--keep-parity-tiles",
        "kept_tiles",
        type=click.IntRange(0, 64),
        default=0,
        help="Of these, to keep in the bundle, so that anyone can repeat the proof. They show tissue.",
    ),
    click.option(
        "--calibrate/--no-calibrate",
        default=True,
        help="Predict each reference section with an image from the others, so that maps say what to trust.",
    ),
    click.option(
        "--groups",
        type=click.Choice(("section", "patient")),
        default="section",
        help="What --calibrate leaves out together; a patient is a section's name without its last number.",
    ),
    click.option(
        "--unseen",
        is_flag=True,
        help="The network was not trained on the --reference sections, so their errors count as they are.",
    ),
)

engine_options = add_options(
    click.option(
        "--engine",
        type=click.Choice(("none", *FLAVORS)),
        default="none",
        help="Build engines: tensorrt for this machine's GPU, tensorrt-rtx for --target without a GPU. "
        "mclst-infer builds a missing one.",
    ),
    click.option(
        "--max-batch",
        type=click.IntRange(1, 4096),
        default=64,
        help="Largest batch of tiles of an engine.",
    ),
    click.option(
        "--target",
        "targets",
        metavar="sm_86,…",
        callback=_parse_targets,
        help="Compute capabilities of --engine tensorrt-rtx.  [default: sm_80,sm_86,sm_89,sm_120]",
    ),
    click.option(
        "--workspace",
        type=Bytes(),
        help="Memory limit of an engine besides its weights, such as 2GB.  [default: all]",
    ),
    click.option("--timing-cache", type=PATH, help="File for kernel timings of --engine tensorrt."),
    click.option(
        "--version-compatible",
        is_flag=True,
        help="Build tensorrt engines that later versions run with this version's lean runtime.",
    ),
    click.option(
        "--hardware-compatible",
        is_flag=True,
        help="Build tensorrt engines for any GPU from Ampere on; may be slower.",
    ),
)

metadata_options = add_options(
    click.option(
        "--license",
        "license_name",
        metavar="SPDX",
        help="License of the bundle, such as Apache-2.0; mclst-bundle push needs one.  [default: not stated]",
    ),
    click.option(
        "--metadata",
        "metadata_path",
        type=PATH,
        metavar="FILE.yaml",
        help="What the bundle says of itself: training data, evaluation, base model, citation, Ensembl ids.",
    ),
)

output_options = add_options(
    click.option("--overwrite", is_flag=True, help="Replace an existing bundle or repository."),
    click.option("--json", "json_path", type=PATH, help="Write manifest and parity as JSON; - for stdout."),
    click.option("-q", "--quiet", is_flag=True, help="Print only errors."),
)
