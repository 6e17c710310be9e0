"""`mclst-fit`: fit a head on a frozen encoder and write a checkpoint for mclst-export."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.runtime.choices import PROVIDERS
from mclst.runtime.click_types import PATH, SETTINGS, Finite
from mclst.runtime.console import check_outputs, command, progress, publish_result, say, table
from mclst.runtime.errors import needs_extra
from mclst.runtime.section_options import SectionFiles, section_options
from mclst.sections.normalization_names import NORMALIZATION_NAMES

if TYPE_CHECKING:
    from mclst.training.fitting.run import FitResult

SMALLEST_VIEW, LARGEST_VIEW = 0.05, 20.0


class Factors(click.ParamType[tuple[float, ...]]):
    """Distinct comma-separated factors."""

    name = "a,b,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Text → factors; anything else is wrong usage."""
        if isinstance(value, tuple):
            return value
        try:
            factors = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            factors = ()
        if not factors or not all(SMALLEST_VIEW <= factor <= LARGEST_VIEW for factor in factors):
            self.fail(
                f"{value!r} is not a list of factors from {SMALLEST_VIEW:g} to {LARGEST_VIEW:g} with commas "
                "between",
                param,
                ctx,
            )
        if len(set(factors)) != len(factors):
            self.fail(f"{value!r} names a factor twice; name each once", param, ctx)
        return factors


class WeightsPath(click.Path):
    """A file or folder of weights, and where one that is not given may be had."""

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:
        """Say that nothing is downloaded."""
        return (
            "mclst downloads nothing: get the file from the encoder's authors, whom docs/encoders.md names."
        )


@click.command(context_settings=SETTINGS)
@click.argument("paths", metavar="SECTIONS...", type=PATH, nargs=-1, required=True)
@click.option(
    "--encoder",
    required=True,
    help="Frozen encoder: a name such as uni2-h or efficientnet_lite0, a network of timm, or a .yaml recipe.",
)
@click.option(
    "--weights",
    type=WeightsPath(path_type=Path),
    required=True,
    help="The encoder's weights: a local file or folder.",
)
@click.option("--out", type=PATH, default=Path("model.pt"), help="The checkpoint to write.")
@click.option("--sections", help="Sections to fit on: names and ranges, such as A2-G3,H1.  [default: all]")
@click.option("--hold-out", multiple=True, help="Section to exclude; repeatable.")
@click.option(
    "--genes",
    type=PATH,
    help="Genes to predict: .txt, .tsv or .npy.  [default: genes.txt in SECTIONS, else all]",
)
@section_options
@click.option(
    "--head",
    type=click.Choice(("ridge", "pca-ridge", "knn", "blend")),
    default="ridge",
    help="Ridge regression; the HEST benchmark's; nearest neighbors; ridge and neighbors' residuals.",
)
@click.option(
    "--views", type=Factors(), default="1", help="Fields of view, as multiples of the encoder's own."
)
@click.option(
    "--context",
    type=Finite(1, 10_000),
    help="Add the mean features of the spots within this many µm.  [default: no context]",
)
@click.option(
    "--groups",
    help="What is left out together: patient (section names without their last number), or a table of "
    "section and group.  [default: each section]",
)
@click.option("--alpha", type=Finite(0, min_open=True), help="Penalty of the ridge.  [default: chosen]")
@click.option("--k", type=click.IntRange(1), help="Neighbors of knn and blend.  [default: chosen]")
@click.option(
    "--weighting",
    type=click.Choice(("uniform", "similarity")),
    default="uniform",
    help="Of knn: equal weights, or all training spots weighted by their cosine.",
)
@click.option(
    "--expression-normalization",
    "units",
    type=click.Choice(NORMALIZATION_NAMES),
    default="gene-wise",
    help="Units of the expression.",
)
@click.option(
    "--tile-mpp",
    type=Finite(0.05, 100),
    help="µm/px of the encoder's field of view.  [default: the encoder's own, else level-0 pixels]",
)
@click.option("--mpp", type=Finite(0.05, 10), help="µm/px of level 0, if images do not give it.")
@click.option(
    "--from-features",
    type=PATH,
    multiple=True,
    help="Features of a section by TRIDENT (SECTION.h5), or a folder of them; repeatable.",
)
@click.option(
    "--weights-by-reference",
    is_flag=True,
    help="Leave the encoder out of the checkpoint; mclst-export --weights puts it back.",
)
@click.option("--provider", type=click.Choice(PROVIDERS), default="auto", help="What runs the encoder.")
@click.option("--batch-size", type=click.IntRange(1, 4096), default=16, help="Tiles encoded at once.")
@click.option("--workers", type=click.IntRange(1, 256), default=2, help="Threads that read tiles.")
@click.option("--no-cache", is_flag=True, help="Neither keep features for the next fit nor use kept ones.")
@click.option("--overwrite", is_flag=True, help="Replace an existing checkpoint.")
@click.option("--json", "json_path", type=PATH, help="Write settings and scores as JSON; - for stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
@click.version_option(package_name="mclst")
@command
def main(
    paths: tuple[Path, ...],
    weights: Path,
    out: Path,
    genes: Path | None,
    overwrite: bool,
    json_path: Path | None,
    quiet: bool,
    section_files: SectionFiles,
    **options: Any,
) -> None:
    """Fit a head on a frozen encoder's features of measured SECTIONS and write a checkpoint.

    SECTIONS are legacy ST, Space Ranger, Visium HD, Xenium, HEST, SpatialData or .h5ad sections, or folders
    of them, each with its H&E slide: a file of the section's name beside it, or --image. Each section is
    predicted by a head that has not seen it; these scores are printed, and the ridge's penalty and the number
    of neighbors are chosen by them. mclst-export --ckpt turns the checkpoint into a bundle.

    Features are kept in $MCLST_CACHE, else ~/.cache/mclst, so another head takes seconds. mclst downloads
    nothing: --weights is a file you have.
    """
    groups = None if options["groups"] is None else Path(options["groups"])
    check_outputs((out,), json_path, overwrite=overwrite, inputs=(groups, *section_files.paths))
    check_head(*(options[name] for name in ("head", "alpha", "k", "weighting")))
    with needs_extra("export,cpu"):
        from mclst.training.fitting.checkpoint import write_fitted
        from mclst.training.fitting.command import fit_from_options
    log = functools.partial(say, quiet=quiet)
    result = fit_from_options(
        paths,
        section_files,
        weights,
        genes,
        options,
        say=log,
        progress=functools.partial(progress, quiet=quiet),
    )
    write_fitted(out, result.model)
    table(_summary(result, out), quiet=quiet)
    publish_result(json_path, lambda: _as_json(result, out), out)


def check_head(head: str, alpha: float | None, k: int | None, weighting: str) -> None:
    """Raise click.UsageError if an option does not belong to the head."""
    if k is not None and head not in ("knn", "blend"):
        raise click.UsageError("--k belongs to --head knn and blend")
    if weighting == "similarity" and (head != "knn" or k is not None):
        raise click.UsageError(
            "--weighting similarity belongs to --head knn and takes all spots; leave --k out"
        )
    if alpha is not None and head == "knn":
        raise click.UsageError("--alpha belongs to --head ridge, pca-ridge and blend")


def _summary(result: FitResult, out: Path) -> list[tuple[str, Any]]:
    model, head = result.model, result.model.head
    parts = [str(model.record["head"])]
    if head.penalty is not None:
        parts.append(str(head.penalty))
    if head.components:
        parts.append(f"{head.components} components")
    if head.retrieval is not None:
        all_spots = head.retrieval.weighting == "similarity"
        parts.append("all spots by similarity" if all_spots else f"k {head.retrieval.k}")
    rows: list[tuple[str, Any]] = [
        ("head", ", ".join(parts)),
        ("judged by", model.folds.text),
    ]
    for name, item in result.scores.items():
        rows.append(
            (
                f"held out {name}",
                f"PCC {item.pcc_acg:.3f} all genes, {item.pcc_heg:.3f} highest, MSE {item.mse:.3f}",
            )
        )
    seconds = result.seconds
    source = f"{result.encoded:,} tiles by {result.provider}" if result.encoded else "from the cache or files"
    rows.append(("features", f"{model.setup.width} per tile, {source}, {seconds['features']:.0f} s"))
    rows.append(("fit", f"{seconds['fit']:.1f} s"))
    rows.append(("checkpoint", out))
    return rows


def _as_json(result: FitResult, out: Path) -> dict[str, Any]:
    model = result.model
    return {
        "checkpoint": str(out),
        "encoder": model.setup.recipe.name,
        "views": list(model.setup.views),
        "context_um": model.context_um,
        "expression": model.units,
        "genes": len(model.genes),
        "alpha": None if model.head.penalty is None else model.head.penalty.record(),
        "judged_by": model.folds.text,
        **model.record,
        "encoded": result.encoded,
        "provider": result.provider,
        "seconds": {name: round(value, 2) for name, value in result.seconds.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
