"""The options that name a bundle and say how it retrieves, the same in every command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mclst.kernels.definition.spec import DISTANCES, RANKS, WEIGHTINGS, RetrievalSpec
from mclst.runtime.console import Finite

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
    otherwise: RetrievalSpec | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a click callback k, rank, distance, weighting and temperature, None where not given.

    otherwise: what then holds, for the help; None: what the bundle says.
    """
    options = (
        ("k", click.IntRange(1), "Neighbours averaged per tile."),
        ("rank", click.Choice(RANKS), "What chooses the neighbours."),
        ("distance", click.Choice(DISTANCES), "What the weights are made of."),
        ("weighting", click.Choice(WEIGHTINGS), "Distance to weight."),
        ("temperature", Finite(0, min_open=True), "Of the softmax weightings."),
    )

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, kind, what in reversed(options):
            default = "the bundle's" if otherwise is None else getattr(otherwise, name)
            function = click.option(f"--{name}", type=kind, help=f"{what}  [default: {default}]")(function)
        return function

    return add
