"""The options that name a bundle and its retrieval, the same in every command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.kernels.definition.spec import DISTANCES, RANKS, WEIGHTINGS, RetrievalSpec
from mclst.runtime.bundle.location import SCHEME, BundleLocation, HubLocation
from mclst.runtime.click_types import PATH, Finite, add_options
from mclst.runtime.console import say
from mclst.runtime.progress import Notify

if TYPE_CHECKING:
    from mclst.runtime.bundle.bundle import Bundle
    from mclst.runtime.sharing.signature import Trusted

quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print errors only.")


def _trusted(ctx: click.Context, param: click.Parameter, value: str | None) -> Trusted | None:
    if value is None:
        return None
    from mclst.runtime.sharing.signature import Trusted

    try:
        return Trusted.of(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


signature_option = click.option(
    "--require-signature",
    "trusted",
    metavar="WHO",
    envvar="MCLST_REQUIRE_SIGNATURE",
    show_envvar=True,
    callback=_trusted,
    help="Refuse a bundle not signed by WHO: a file with a public key or root certificates, or "
    "IDENTITY,https://ISSUER.",
)
"""Gives a click callback `trusted`."""


class BundleType(click.ParamType[BundleLocation]):
    """A bundle's folder, or hf://ORG/NAME with an optional @REVISION."""

    name = "path|hf://…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> BundleLocation:
        """Text → Path or HubLocation; an address of another form is wrong usage."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        if not value.startswith(SCHEME):
            return Path(value)
        try:
            return HubLocation.of(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def open_any_bundle(location: BundleLocation, trusted: Trusted | None, notify: Notify) -> Bundle:
    """Open a bundle here or at the hub, and check its signature if one is required.

    A graph is verified when it is first asked for.
    """
    from mclst.runtime.bundle.bundle import open_bundle

    bundle = open_bundle(local_folder(location, notify), verify_graphs=False)
    if trusted is not None:
        from mclst.runtime.sharing.signature import check_signature

        check_signature(bundle, trusted)
    return bundle


def local_folder(location: BundleLocation, notify: Notify) -> Path:
    """Return a bundle's folder, after getting it from the hub if it is there; raises as `fetch` does."""
    if isinstance(location, Path):
        return location
    from mclst.runtime.sharing.hub import fetch

    return fetch(location, notify)


def note_signature(folder: Path) -> None:
    """Say that a bundle's signature, if it has one, does not cover what was just written beside it."""
    from mclst.runtime.sharing.verify import SIGNATURE

    if (folder / SIGNATURE).exists():
        say(f"Note: {SIGNATURE} is from before; sign again with mclst-bundle sign --overwrite")


def _option(kind: click.ParamType[Any], help_text: str) -> Callable[[Any], Any]:
    return click.option(
        "--bundle",
        "bundle_path",
        type=kind,
        default="mclst-bundle",
        envvar="MCLST_BUNDLE",
        show_envvar=True,
        help=help_text,
    )


bundle_option = _option(PATH, "Bundle of mclst-export.")
"""Gives a click callback `bundle_path`, a Path."""

any_bundle_option = _option(
    BundleType(), "Bundle of mclst-export, or hf://ORG/NAME@REVISION at the Hugging Face hub."
)
"""Gives a click callback `bundle_path`, a BundleLocation."""


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

    shown = {name: "the bundle's" if defaults is None else getattr(defaults, name) for name, _, _ in options}
    return add_options(
        *(
            click.option(f"--{name}", type=kind, help=f"{text}  [default: {shown[name]}]")
            for name, kind, text in options
        )
    )
