"""`mclst-bundle`: describe, verify and pack a bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mclst.runtime.bundle.location import BundleLocation, HubLocation, local
from mclst.runtime.cli.bundle_hub import HubType, bioimageio, complete, pull, push, sign
from mclst.runtime.cli.bundle_options import (
    BundleType,
    local_folder,
    note_signature,
    quiet_option,
    signature_option,
)
from mclst.runtime.click_types import PATH, SETTINGS
from mclst.runtime.console import EXIT_CODES, check_json, command, escape_controls, publish_json, say, table

if TYPE_CHECKING:
    from mclst.runtime.sharing.signature import Trusted

bundle_argument = click.argument("location", metavar="BUNDLE", type=BundleType(), default="mclst-bundle")


@click.group(context_settings=SETTINGS, epilog=EXIT_CODES)
@click.version_option(package_name="mclst")
def main() -> None:
    """Describe, verify, sign, pack and share bundles.

    BUNDLE is a folder of mclst-export or hf://ORG/NAME@REVISION; without it, mclst-bundle in the working
    folder.
    """


def _note(text: str) -> None:
    say(f"Note: {text}")


@main.command(context_settings=SETTINGS)
@bundle_argument
@click.option(
    "--json", "json_path", type=PATH, help="Write the facts and the manifest as JSON; - for stdout."
)
@command
def info(location: BundleLocation, json_path: Path | None) -> None:
    """Show what BUNDLE is, from where and how good, on one screen."""
    from mclst.runtime.bundle.bundle import open_bundle
    from mclst.runtime.sharing.facts import describe

    check_json(json_path, overwrite=False, inputs=(local(location),))
    facts = describe(open_bundle(local_folder(location, _note)))
    if json_path is None:
        click.echo(escape_controls(facts.title))
        width = max(len(name) for name, _ in facts.rows)
        for name, value in facts.rows:
            click.echo(f"  {name:<{width}}  {escape_controls(value)}")
        return
    manifest = facts.bundle.manifest.model_dump(mode="json")
    publish_json(json_path, {"title": facts.title, "facts": dict(facts.rows), "manifest": manifest})


@main.command(context_settings=SETTINGS)
@bundle_argument
@click.option("--out", type=PATH, help="File to write; - for stdout.  [default: README.md in BUNDLE]")
@click.option(
    "--hub", metavar="ORG/NAME", type=HubType(bare=True), help="Repository that readers get the bundle from."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing card.")
@command
def card(location: BundleLocation, out: Path | None, hub: HubLocation | None, overwrite: bool) -> None:
    """Write BUNDLE's card, a README.md for the Hugging Face hub.

    Says what is not known. Give license, training data and evaluation to mclst-export --metadata.
    """
    from mclst.runtime.atomic import check_distinct, check_writable, write_atomically
    from mclst.runtime.bundle.bundle import MANIFEST, open_bundle
    from mclst.runtime.sharing.card import card as write_card
    from mclst.runtime.sharing.facts import describe
    from mclst.runtime.sharing.verify import CARD, check_not_cached

    bundle = open_bundle(local_folder(location, _note))
    if out is None:
        check_not_cached(bundle)
    path = bundle.path / CARD if out is None else out
    address = str(hub or location) if hub or local(location) is None else bundle.path.name
    text = write_card(describe(bundle), address or "mclst-bundle")
    if str(path) == "-":
        click.echo(text, nl=False)
        return
    check_writable(path, overwrite=overwrite)
    check_distinct((path,), (bundle.path / name for name in (MANIFEST, *bundle.manifest.files)))
    write_atomically(path, text.encode())
    if out is None:
        note_signature(bundle.path)
    click.echo(str(path))


@main.command("add-evaluation", context_settings=SETTINGS)
@click.argument("bundle_path", metavar="BUNDLE", type=PATH)
@click.argument("result", metavar="RESULT.json", type=PATH)
@click.option("--method", help="Of several that RESULT compares.")
@click.option("--url", help="Where others find RESULT.")
@command
def add_evaluation(bundle_path: Path, result: Path, method: str | None, url: str | None) -> None:
    """Record in BUNDLE what mclst-eval --json measured of its maps.

    The manifest changes, and with it the bundle's hash: add before the card and the signature. A section that
    the bank holds is refused.
    """
    from mclst.runtime.sharing.evaluation import add_evaluation as add
    from mclst.runtime.sharing.facts import evaluation
    from mclst.runtime.sharing.verify import CARD, verify_bundle

    bundle = add(verify_bundle(bundle_path), result, method, url)
    assert bundle.manifest.about is not None, "it was added"
    table([("evaluated", evaluation(bundle.manifest.about)), ("SHA-256", bundle.sha256)])
    if (bundle.path / CARD).exists():
        say(f"Note: {CARD} is from before; write it again with mclst-bundle card --overwrite")
    click.echo(str(bundle.path))


@main.command(context_settings=SETTINGS)
@bundle_argument
@signature_option
@quiet_option
@command
def verify(location: BundleLocation, trusted: Trusted | None, quiet: bool) -> None:
    """Check hashes, graphs and parity, and that BUNDLE holds no more.

    The proof is repeated on the tiles that mclst-export --keep-parity-tiles left in the bundle.

    Exit with 0 if all is right, else with 4 and a sentence.
    """
    from mclst.runtime.bundle.manifest import ENGINES
    from mclst.runtime.sharing.facts import describe_parity, read_parity
    from mclst.runtime.sharing.parity_tiles import repeat_proof
    from mclst.runtime.sharing.signature import check_signature
    from mclst.runtime.sharing.verify import verify_bundle

    bundle = verify_bundle(local_folder(location, _note))
    repeated = repeat_proof(bundle)
    signed = "not checked"
    if trusted is not None:
        check_signature(bundle, trusted)
        engines = " but engines/, which this machine builds" if (bundle.path / ENGINES).exists() else ""
        signed = f"of {trusted}, over every file{engines}"
    rows = [
        ("files", f"{len(bundle.manifest.files)}, sizes and SHA-256 as in the manifest"),
        ("parity", describe_parity(read_parity(bundle))),
        (
            "repeated here",
            "no: the bundle keeps no tiles of the proof"
            if repeated is None
            else f"on {repeated[0]} tiles, within {repeated[1]:.1e} of the checkpoint's output",
        ),
        ("signature", signed),
        ("SHA-256", bundle.sha256),
    ]
    table(rows, quiet=quiet)
    click.echo(str(bundle.path))


@main.command(context_settings=SETTINGS)
@bundle_argument
@click.option("--out", type=PATH, help="Archive to write.  [default: BUNDLE's name with .mclst.zip]")
@click.option("--overwrite", is_flag=True, help="Replace an existing archive.")
@command
def pack(location: BundleLocation, out: Path | None, overwrite: bool) -> None:
    """Pack BUNDLE into one file for transport.

    The same bundle gives the same bytes. Engines stay out: they are of this machine.
    """
    from mclst.runtime.atomic import check_distinct
    from mclst.runtime.sharing.archive import SUFFIX
    from mclst.runtime.sharing.archive import pack as write_archive
    from mclst.runtime.sharing.verify import verify_bundle

    bundle = verify_bundle(local_folder(location, _note))
    name = (
        location.repository.split("/")[1] if isinstance(location, HubLocation) else bundle.path.resolve().name
    )
    path = out or Path(f"{name}{SUFFIX}")
    check_distinct((path,), (bundle.path,))
    click.echo(str(write_archive(bundle, path, overwrite=overwrite)))


@main.command(context_settings=SETTINGS)
@click.argument("archive", type=PATH)
@click.option("--out", type=PATH, help="Folder to write.  [default: ARCHIVE's name without .mclst.zip]")
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@quiet_option
@command
def unpack(archive: Path, out: Path | None, overwrite: bool, quiet: bool) -> None:
    """Unpack and verify an ARCHIVE of mclst-bundle pack.

    Links, names outside the folder and bombs are refused; a refused archive leaves nothing behind.
    """
    from mclst.runtime.atomic import check_distinct
    from mclst.runtime.sharing.archive import SUFFIX
    from mclst.runtime.sharing.archive import unpack as read_archive

    folder = out or Path(archive.name.removesuffix(SUFFIX).removesuffix(".zip"))
    if folder.name == archive.name and out is None:
        raise click.UsageError(f"{archive} does not end in {SUFFIX}; give the folder with --out")
    check_distinct((folder,), (archive,))
    bundle = read_archive(archive, folder, overwrite=overwrite)
    say(repr(bundle), quiet=quiet)
    click.echo(str(bundle.path))


for shared in (pull, push, complete, sign, bioimageio):
    main.add_command(shared)

if __name__ == "__main__":
    sys.exit(main())
