"""`mclst-bundle pull`, `push`, `complete` and `sign`: bundles for and from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mclst.runtime.bundle.location import SCHEME, BundleLocation, HubLocation
from mclst.runtime.cli.bundle_options import BundleType, note_signature, quiet_option
from mclst.runtime.cli.slide_argument import SlideArgument
from mclst.runtime.click_types import PATH, SETTINGS, refuse_unowned
from mclst.runtime.console import command, say
from mclst.sections.location import SlideLocation


class HubType(click.ParamType[HubLocation]):
    """An address at the hub; bare: hf:// may be left out."""

    name = "hf://ORG/NAME@REVISION"

    def __init__(self, *, bare: bool = False) -> None:
        self._scheme = SCHEME if bare else ""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> HubLocation:
        """Text → HubLocation; another form is wrong usage."""
        try:
            if isinstance(value, HubLocation):
                return value
            return HubLocation.of(self._scheme + str(value).removeprefix(self._scheme))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(context_settings=SETTINGS)
@click.argument("location", metavar="hf://ORG/NAME@REVISION", type=HubType())
@click.option("--out", type=PATH, help="Also copy the bundle to this folder.")
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@quiet_option
@command
def pull(location: HubLocation, out: Path | None, overwrite: bool, quiet: bool) -> None:
    """Get a bundle from the hub into the hub's cache, and verify it.

    Prints its folder. mclst-infer --bundle hf://… then works without a network.
    """
    from mclst.runtime.sharing.archive import copy_bundle
    from mclst.runtime.sharing.hub import fetch
    from mclst.runtime.sharing.verify import verify_bundle

    if out is None:
        refuse_unowned("--out", "overwrite")
    bundle = verify_bundle(fetch(location, lambda text: say(f"Note: {text}", quiet=quiet)))
    say(repr(bundle), quiet=quiet)
    if out is not None:
        bundle = copy_bundle(bundle, out, overwrite=overwrite)
    click.echo(str(bundle.path))


@click.command(context_settings=SETTINGS)
@click.argument("bundle_path", metavar="BUNDLE", type=PATH)
@click.argument("location", metavar="hf://ORG/NAME", type=HubType())
@click.option("--private", is_flag=True, help="Make the repository private, if it does not exist.")
@click.option(
    "--by-reference",
    is_flag=True,
    help="Leave out the encoder's weights, whose license forbids derivatives; name and hash stay.",
)
@click.option(
    "--message", default="", show_default=False, help="Of the commit.  [default: the bundle's hash]"
)
@quiet_option
@command
def push(
    bundle_path: Path, location: HubLocation, private: bool, by_reference: bool, message: str, quiet: bool
) -> None:
    """Publish BUNDLE at the hub with its card, in one commit.

    Prints its address with the commit. Needs a license; what forbids derivatives is refused. Log in with
    `hf auth login` or HF_TOKEN.
    """
    from mclst.runtime.sharing.hub import publish
    from mclst.runtime.sharing.verify import verify_bundle

    published = publish(
        verify_bundle(bundle_path),
        location,
        private=private,
        by_reference=by_reference,
        message=message,
        notify=lambda text: say(text, quiet=quiet),
    )
    click.echo(str(published))


@click.command(context_settings=SETTINGS)
@click.argument("part", type=BundleType())
@click.option(
    "--encoder", type=PATH, required=True, help="Folder with the encoder's graphs, such as a bundle."
)
@click.option("--out", type=PATH, required=True, help="Folder of the whole bundle.")
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@command
def complete(part: BundleLocation, encoder: Path, out: Path, overwrite: bool) -> None:
    """Join PART, published by reference, with its encoder.

    PART is a folder or hf://ORG/NAME@REVISION. The encoder's graphs must have the hashes that PART's manifest
    lists: export them from the same weights.
    """
    from mclst.runtime.atomic import check_distinct
    from mclst.runtime.sharing.by_reference import complete as join
    from mclst.runtime.sharing.hub import fetch

    folder = part if isinstance(part, Path) else fetch(part, lambda text: say(f"Note: {text}"), partial=True)
    check_distinct((out,), (folder, encoder), inside=False)
    click.echo(str(join(folder, encoder, out, overwrite=overwrite).path))


@click.command(context_settings=SETTINGS)
@click.argument("bundle_path", metavar="BUNDLE", type=PATH)
@click.option("--key", type=PATH, help="Private key: elliptic curve, PEM.  [default: keyless, by Sigstore]")
@click.option(
    "--password-from",
    metavar="VARIABLE",
    help="Environment variable with the key's password.  [default: no password]",
)
@click.option("--certificate", type=PATH, help="Certificate of the key, PEM.")
@click.option("--chain", type=PATH, multiple=True, help="Certificate between it and a root; repeatable.")
@click.option("--overwrite", is_flag=True, help="Replace an existing signature.")
@command
def sign(
    bundle_path: Path,
    key: Path | None,
    password_from: str | None,
    certificate: Path | None,
    chain: tuple[Path, ...],
    overwrite: bool,
) -> None:
    """Sign BUNDLE by OpenSSF model signing: model.sig beside its files.

    Write the card before: the signature covers it. Without --key, Sigstore signs for whoever logs in, or for
    the identity of a CI job; that needs a network.
    """
    import os

    from mclst.runtime.sharing.signature import Signer
    from mclst.runtime.sharing.signature import sign as write_signature
    from mclst.runtime.sharing.verify import verify_bundle

    if key is None and (certificate is not None or chain or password_from):
        raise click.UsageError("--certificate, --chain and --password-from belong to --key")
    if chain and certificate is None:
        raise click.UsageError("--chain belongs to --certificate")
    if password_from is not None and password_from not in os.environ:
        raise click.UsageError(f"there is no environment variable {password_from}")
    password = None if password_from is None else os.environ[password_from]
    signer = Signer(key, password, certificate, chain)
    click.echo(str(write_signature(verify_bundle(bundle_path), signer, overwrite=overwrite)))


@click.command("bioimageio", context_settings=SETTINGS)
@click.argument("bundle_path", metavar="BUNDLE", type=PATH)
@click.argument("slide_path", metavar="[SLIDE]", type=SlideArgument(), required=False)
@click.option("--author", "authors", multiple=True, required=True, help="Name of a maker; repeatable.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@command
def bioimageio(
    bundle_path: Path, slide_path: SlideLocation | None, authors: tuple[str, ...], overwrite: bool
) -> None:
    """Describe BUNDLE as a model of bioimage.io: rdf.yaml.

    Test tensors are the tiles of the parity proof that mclst-export --keep-parity-tiles left in the bundle;
    or four tiles of SLIDE's tissue, and what the graph gives for them. Anyone will see them. Needs a license
    and a card.
    """
    from mclst.runtime.sharing.bioimageio import tissue_tiles, write_rdf
    from mclst.runtime.sharing.verify import verify_bundle
    from mclst.runtime.slide.open import open_slide

    bundle, tiles = verify_bundle(bundle_path), None
    if slide_path is not None:
        with open_slide(slide_path) as slide:
            tiles = tissue_tiles(bundle, slide)
    path = write_rdf(bundle, tiles, authors, overwrite=overwrite)
    note_signature(bundle.path)
    click.echo(str(path))
