"""`mclst-bench nulls`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mclst.benchmarks.harness.options import ResultFiles, result_options
from mclst.runtime.click_types import PATH
from mclst.runtime.console import command

FIELDS = ((0.0, 0.0), (2.0, 0.0), (5.0, 0.0), (10.0, 0.0), (5.0, 0.5))
"""Length of a field's covariance in spots, and share of its variance that is noise."""
DISC_RADIUS, SECTION_RADIUS = 15.4, 8.0
LENGTHS = (1.0, 2.0, 4.0)


@click.command()
@click.option("--spots", "spots_path", type=PATH, help="Spots with array positions; tried beside a disc.")
@click.option("--pairs", type=click.IntRange(10), default=3000, help="Pairs of fields for each p-value.")
@click.option("--trials", type=click.IntRange(10), default=200, help="Sections for each interval.")
@click.option("--genes", type=click.IntRange(1), default=40, help="Genes of such a section.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the random fields.")
@result_options(json="Write everything; - for stdout.")
@command
def nulls(
    spots_path: Path | None,
    pairs: int,
    trials: int,
    genes: int,
    seed: int,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Count how often mclst-eval finds something in random fields, where there is nothing.

    p-values: of two independent fields, p < 0.05 should hold in 5 %. Intervals: of the difference of two
    equally good predictions, 5 % should miss 0.
    """
    result_files.check()
    from mclst.benchmarks.harness.machine import new_document
    from mclst.benchmarks.nulls.fields import disc
    from mclst.benchmarks.nulls.measure import missed_intervals, p_values

    document = new_document("mclst-bench-nulls/1")
    places = {"disc": disc(DISC_RADIUS)}
    if spots_path is not None:
        places = {spots_path.name: _array_positions(spots_path), **places}
    p = [
        {"spots": name, "count": len(xy), "length": length, "noise": noise}
        | p_values(xy, length, noise, pairs, seed)
        for name, xy in places.items()
        for length, noise in FIELDS
    ]
    section = disc(SECTION_RADIUS)
    intervals = [
        {"count": len(section), "length": length} | missed_intervals(section, length, trials, genes, seed)
        for length in LENGTHS
    ]
    document |= {
        "settings": {"pairs": pairs, "trials": trials, "genes": genes, "seed": seed},
        "p_values": p,
        "intervals": intervals,
    }
    if not quiet:
        _show(document)
    result_files.publish(document)


def _array_positions(path: Path) -> Any:
    from mclst.runtime.errors import InputError
    from mclst.sections.tables.spots import read_spots

    spots = read_spots(path)
    if spots.array_xy is None:
        raise InputError(f"{path} has no array positions; give a table that has, or leave --spots out")
    return spots.array_xy.astype(float)


def _show(document: dict[str, Any]) -> None:
    from mclst.benchmarks.harness.tables import show_table

    rows = [
        [
            f"{own['count']} spots, {own['spots']}",
            f"{own['length']:g}",
            f"{own['noise']:.0%}",
            f"{own['published']:.1%}",
            f"{own['corrected']:.1%}",
        ]
        for own in document["p_values"]
    ]
    show_table("p < 0.05 of independent fields", ("", "length", "noise", "published", "corrected"), rows)
    rows = [
        [
            f"{own['count']} spots",
            f"{own['length']:g}",
            f"{own['missed']:.1%}",
            f"{own['least']:.1%}, {own['most']:.1%}",
        ]
        for own in document["intervals"]
    ]
    show_table("95 % intervals of equally good maps that miss 0", ("", "length", "missed", "95 %"), rows)
