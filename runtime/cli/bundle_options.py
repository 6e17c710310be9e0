"""The options that name a bundle and its retrieval, the same in every command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mclst.kernels.definition.spec import DISTANCES, RANKS, WEIGHTINGS, RetrievalSpec
from mclst.runtime.click_types import Finite

bundle_option = click.option(
    "--bundle",
    "bundle_path",
    type=click.Path(path_type=Path),
    default=Path("mclst-bundle"),
    envvar="MCLST_BUNDLE",
    show_envvar=True,
    help="Bundle of mclst-export.",
)
"""Gives a click callback `bundle_path`."""


def retrieval_options(
    defaults: RetrievalSpec | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a click callback k, rank, distance, weighting and temperature, None if not on the command line.

    defaults: shown in the help; None: the bundle's.
    """
    options = (
        ("k", click.IntRange(1), "Neighbors averaged per tile."),
        ("rank", click.Choice(RANKS), "Metric that selects the neighbors."),
        ("distance", click.Choice(DISTANCES), "Metric that the weights are computed from."),
        ("weighting", click.Choice(WEIGHTINGS), "Function from distance to weight."),
        ("temperature", Finite(0, min_open=True), "Temperature of the softmax weightings."),
    )

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, kind, text in reversed(options):
            default = "the bundle's" if defaults is None else getattr(defaults, name)
            function = click.option(f"--{name}", type=kind, help=f"{text}  [default: {default}]")(function)
        return function

    return add
