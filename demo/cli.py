"""`mclst-demo`: options → the whole way → a summary."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mclst.runtime.atomic import check_writable
from mclst.runtime.console import command, progress, say, table
from mclst.runtime.errors import ResourceError

if TYPE_CHECKING:
    from mclst.demo.end_to_end import Outcome

OWN_DATA = """The same on your own data, with a checkpoint and measured sections:
  mclst-export --ckpt model.pt --reference SECTIONS
  mclst-infer slide.tif --spots spots.csv"""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=Path("mclst-demo"), help="Folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace a folder of that name.")
@click.option("--seed", type=click.IntRange(0, 1_000_000), default=0, help="Which tissue is made up.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option(
    "-v", "--verbose", is_flag=True, help="Also the loss of every epoch and the time of every stage."
)
@click.version_option(package_name="mclst")
@command
def main(out: Path, overwrite: bool, seed: int, quiet: bool, verbose: bool) -> None:
    """Go the whole way on made-up tissue: train, export, predict, compare. Offline, on the CPU, about two minutes.

    Makes four H&E slides with spots and counts in which expression programmes are planted, trains a small model on
    three, and predicts the fourth. The path of the folder made is printed on stdout.
    """
    check_writable(out, overwrite=overwrite)
    try:
        from mclst.demo.end_to_end import run_demo
    except ImportError as error:
        raise ResourceError(f"{error.name} is not installed; install mclst[export,cpu]") from error
    say("made-up tissue, from measuring to predicting: about two minutes on two CPU cores", quiet=quiet)
    outcome = run_demo(
        out,
        seed,
        overwrite=overwrite,
        say=functools.partial(say, quiet=quiet),
        progress=functools.partial(progress, quiet=quiet),
    )
    if verbose:
        losses = " ".join(f"{loss:.2f}" for loss in outcome.trained.losses)
        spent = ", ".join(f"{stage} {value:.0f}" for stage, value in outcome.seconds.items())
        table([("loss", losses), ("seconds", spent)], quiet=quiet)
    _say_outcome(out, outcome, quiet=quiet)
    click.echo(str(out))


def _say_outcome(out: Path, outcome: Outcome, *, quiet: bool) -> None:
    from mclst.demo.end_to_end import CONTROL, of_programme
    from mclst.demo.gene_programs import PLANTED, PROGRAMMES

    tell = functools.partial(say, quiet=quiet)
    r, best = outcome.correlation, outcome.attainable
    tell("")
    tell("Pearson r of predicted with measured expression on the held-out section")
    tell("(in brackets: what a perfect prediction would reach against counts this noisy)")
    rows = [
        (name, f"{outcome.mean(r, genes):.2f}  ({outcome.mean(best, genes):.2f})")
        for name in PROGRAMMES
        if (genes := of_programme(name))[0] in PLANTED
    ]
    rows.append(("all planted", f"{outcome.mean(r):.2f}  ({outcome.mean(best):.2f})"))
    rows.append(("control", f"{outcome.mean(r, CONTROL):.2f}  genes with nothing planted: about 0 is right"))
    rows.append(
        ("MSE", f"{outcome.mse:.3f}  each gene's mean, without looking at the slide: {outcome.mean_mse:.3f}")
    )
    table(rows, quiet=quiet)
    tell("")
    tell("Tissue and counts are made up, and easier than real ones: this shows that every stage works, not")
    tell("how well a model predicts real tissue.")
    tell("")
    assert outcome.run.picture_path is not None
    pictures = [
        ("comparison.png", "slide, predicted, measured"),
        (outcome.run.picture_path.name, "the most spatially structured genes of the map"),
        *(
            (path.name, "the map to look at, predicted beside measured")
            for path in outcome.run.files.values()
        ),
        (outcome.run.map_path.name, "the map, for scanpy and squidpy"),
        ("model.pt, bundle", "the checkpoint and what was exported from it"),
        ("sections", "the made-up slides, spots and counts"),
    ]
    tell(f"In {out}:")
    table(pictures, quiet=quiet)
    tell("")
    for line in OWN_DATA.splitlines():
        tell(line)


if __name__ == "__main__":
    sys.exit(main())
