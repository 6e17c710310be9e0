"""Check a bundle as a stranger's: hashes, parity, and that nothing else lies in the folder."""

from __future__ import annotations

import os
from pathlib import Path

from mclst.runtime.bundle.bundle import MANIFEST, Bundle, open_bundle
from mclst.runtime.bundle.location import cached_snapshot, links_into_cache
from mclst.runtime.bundle.manifest import ENGINES
from mclst.runtime.errors import BundleError
from mclst.runtime.sharing.facts import read_parity

CARD, RDF, SIGNATURE = "README.md", "rdf.yaml", "model.sig"
TEST_INPUT, TEST_OUTPUT = "test_tiles.npy", "test_output.npy"
COMPANIONS = (CARD, RDF, TEST_INPUT, TEST_OUTPUT, SIGNATURE, "LICENSE", "NOTICE", ".gitattributes")
"""Files that may lie beside a bundle's own; the manifest does not hash them, a signature does."""


def companions(folder: Path) -> list[str]:
    """Return the names of the companions that are there.

    Raises BundleError for a link, by which a stranger's bundle would take a file of this machine along.
    """
    names = [name for name in COMPANIONS if (folder / name).is_file()]
    for name in names:
        path = folder / name
        if path.is_symlink() and not links_into_cache(folder, path):
            raise BundleError(
                f"{path} is a link to {path.resolve()}; replace it by a plain file, or remove it"
            )
    return names


def check_not_cached(bundle: Bundle) -> None:
    """Raise BundleError for a bundle in the hub's cache, where nothing is added."""
    if cached_snapshot(bundle.path) is not None:
        raise BundleError(
            f"{bundle.path} is in the hub's cache, which stays as it is; pull it with --out, and add there"
        )


def check_no_extra_files(bundle: Bundle) -> None:
    """Raise BundleError naming the files that neither the manifest nor COMPANIONS names.

    `engines/` may hold anything that its own manifests name; it is built on each machine.
    """
    expected = {MANIFEST, *bundle.manifest.files, *COMPANIONS}
    extra = []
    for folder, folders, names in os.walk(bundle.path):
        here = Path(folder).relative_to(bundle.path)
        if here == Path("."):
            folders[:] = [name for name in folders if name not in (ENGINES, ".cache")]
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        paths = [(here / name).as_posix() for name in (*names, *links)]
        extra += [path for path in paths if path not in expected]
    if extra:
        shown = ", ".join(sorted(extra)[:5]) + (", …" if len(extra) > 5 else "")
        raise BundleError(
            f"{bundle.path} holds what its manifest does not list: {shown}; remove it, or get the bundle "
            "again"
        )


def verify_bundle(path: Path) -> Bundle:
    """Open a bundle and check all that can be checked without its checkpoint.

    Parameters
    ----------
    path : Path
        The folder.

    Returns
    -------
    Bundle
        Whose files have the sizes and hashes of the manifest, whose genes and bank fit it, which records a
        passed parity proof, and which holds nothing else.

    Raises
    ------
    BundleError
        Naming the file and what is wrong.
    """
    bundle = open_bundle(path)
    _ = bundle.genes
    if read_parity(bundle).get("passed") is not True:
        raise BundleError(
            f"{bundle.path}: parity.json does not say that the export passed; export the bundle again"
        )
    check_no_extra_files(bundle)
    bundle.check_unchanged()
    return bundle
