"""`mclst-bench robustness`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mclst.benchmarks.harness.options import ResultFiles, result_options
from mclst.runtime.choices import PROVIDERS
from mclst.runtime.cli.bundle_options import bundle_option
from mclst.runtime.click_types import PATH, Finite
from mclst.runtime.console import command, progress, say


@click.command()
@click.argument("slide", type=PATH)
@click.option("--spots", "spots_path", type=PATH, required=True, help="Table of spots, as for mclst-infer.")
@bundle_option
@click.option("--truth", type=PATH, help="Measured sections to score against.")
@click.option("--section", help="The slide's section in --truth.  [default: by the slide's name]")
@click.option("--mpp", type=Finite(0.01, 100), help="µm per pixel, if the slide does not say.")
@click.option(
    "--most-spots", type=click.IntRange(2), default=1000, help="Use at most so many, spread evenly."
)
@click.option("--genes/--no-genes", default=True, help="Write each gene's own change too.")
@click.option("--provider", type=click.Choice(PROVIDERS), default="auto", help="What runs the encoder.")
@result_options(plot="Draw change and scores of each perturbation (PNG).")
@command
def robustness(
    slide: Path,
    spots_path: Path,
    bundle_path: Path,
    truth: Path | None,
    section: str | None,
    mpp: float | None,
    most_spots: int,
    genes: bool,
    provider: str,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Predict the spots of SLIDE again with other stain, scanner color, focus, JPEG, scale and rotation.

    A model that reads tissue changes little. Prints, for each perturbation, how much the expression of a gene
    changes, and with --truth its scores. Of a calibrated bundle, also what becomes of its intervals, its
    reliable genes and its verdict on the colors.
    """
    result_files.check()
    import numpy as np

    from mclst.benchmarks.harness.machine import new_document
    from mclst.benchmarks.robustness.figure import draw
    from mclst.benchmarks.robustness.measure import measure
    from mclst.runtime.bundle.bundle import open_bundle
    from mclst.sections.tables.spots import read_spots

    document = new_document("mclst-bench-robustness/1")
    bundle = open_bundle(bundle_path)
    spots = read_spots(spots_path)
    if len(spots) > most_spots and bundle.manifest.kind != "slide":
        rows = np.unique(np.linspace(0, len(spots) - 1, most_spots).astype(np.intp))
        spots = spots.take(rows)
    with progress("tiles", len(spots), quiet=quiet) as advance:
        result = measure(
            bundle, slide, spots, truth=truth, section=section, mpp=mpp, provider=provider, advance=advance
        )
    if not quiet:
        _show(result)
    m = bundle.manifest
    document |= {
        "slide": slide.name,
        "bundle": {"system": m.system, "encoder": m.encoder.name, "checkpoint_sha256": m.checkpoint.sha256},
        "results": result if genes else _without_genes(result),
    }
    result_files.publish(document, lambda: draw(result, f"{m.system} on {slide.name}"))


def _without_genes(result: dict[str, Any]) -> dict[str, Any]:
    entries = result["perturbations"].items()
    kept = {name: {k: v for k, v in entry.items() if k != "genes"} for name, entry in entries}
    return {**result, "perturbations": kept}


def _show(result: dict[str, Any]) -> None:
    from mclst.benchmarks.harness.tables import show_table

    entries = result["perturbations"]
    headings = {"r": "r", "change": "change", "shift": "shift"}
    if any("scores" in entry for entry in entries.values()):
        headings |= {"pcc_acg": "PCC (ACG)", "pcc_heg": "PCC (HEG)", "mse": "MSE"}
    trusted = any("trust" in entry for entry in entries.values())
    if trusted:
        headings |= {
            "outside": "outside",
            "covered": "covered",
            "reliable_r": "r reliable",
            "other_r": "others",
        }
    rows = []
    for name, entry in entries.items():
        every = {**entry, **entry.get("scores", {}), **entry.get("trust", {})}
        values = (every.get(measure) for measure in headings)
        cells = ["–" if value is None else f"{value:.3f}" for value in values]
        rows.append([name, *cells, *([every["colors"] or "like theirs"] if trusted else [])])
    title = f"{result['tiles']} tiles; r with, and change from, the expression of the tiles as they are"
    show_table(title, ("", *headings.values(), *(["colors"] if trusted else [])), rows)
    say("change: root mean square, in standard deviations of a gene over the spots; median of the genes")
    say("shift: of a gene's mean, in the same unit")
