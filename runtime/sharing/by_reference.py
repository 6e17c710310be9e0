"""Bundles without their encoder's weights, which a license keeps from being published: by reference.

The manifest still lists the encoder's graphs with their hashes. Whoever may use the weights exports the same
graphs from them, and `complete` puts both together.
"""

from __future__ import annotations

import os
from pathlib import Path

from mclst.runtime.bundle.about import About
from mclst.runtime.bundle.bundle import ENCODER, MANIFEST, Bundle
from mclst.runtime.bundle.manifest import Manifest, read_manifest
from mclst.runtime.errors import BundleError
from mclst.runtime.hashing import file_sha256
from mclst.runtime.sharing.archive import join_files
from mclst.runtime.sharing.verify import companions


def left_out(manifest: Manifest) -> list[str]:
    """Return the files with the encoder's weights."""
    stem = ENCODER.removesuffix(".onnx")
    return [name for name in manifest.files if name.startswith(f"{stem}.")]


def check_reference(bundle: Bundle) -> None:
    """Raise BundleError unless the manifest says which weights the encoder is made from."""
    about = bundle.manifest.about or About()
    base = about.base_model
    if about.license is None:
        raise BundleError(f"{bundle.path} states no license, so nobody may use it; export it with --license")
    if base is None or not base.hub or not base.sha256:
        raise BundleError(
            f"{bundle.path} does not say which weights its encoder has; give base_model with hub and sha256 "
            "in mclst-export --metadata"
        )


def describe_reference(manifest: Manifest) -> str:
    """Say which weights are missing and how to add the graphs made from them."""
    base = None if manifest.about is None else manifest.about.base_model
    weights = "its base model" if base is None else f"{base.name} (hf://{base.hub}, SHA-256 {base.sha256})"
    return (
        f"comes without the graphs of its encoder, {weights}, whose license keeps them from being published; "
        "export the encoder from those weights and join both with mclst-bundle complete"
    )


def complete(part: Path, encoder: Path, out: Path, *, overwrite: bool = False) -> Bundle:
    """Join a bundle by reference with graphs exported elsewhere.

    Parameters
    ----------
    part : Path
        The bundle without its encoder's graphs.
    encoder : Path
        A folder with those graphs, such as a bundle exported from the same weights by the same versions.
    out : Path
        The whole bundle to write.
    overwrite : bool
        Replace a bundle at `out`.

    Returns
    -------
    Bundle

    Raises
    ------
    BundleError
        If a graph is missing or has another hash than the manifest says.
    OutputError
        If `out` exists or cannot be written.
    """
    manifest = read_manifest(part / MANIFEST)
    missing = left_out(manifest)
    for name in missing:
        path, record = encoder / name, manifest.files[name]
        if not os.path.isfile(path):
            raise BundleError(f"{encoder} has no {name}; export the encoder with the same --precision")
        try:
            same = (path.stat().st_size, file_sha256(path)) == (record.bytes, record.sha256)
        except OSError as error:
            raise BundleError(
                f"{path} cannot be read ({error.strerror or error}); give the encoder's graphs"
            ) from error
        if not same:
            versions = ", ".join(f"{package} {version}" for package, version in manifest.versions.items())
            raise BundleError(
                f"{path} is not the graph that {part / MANIFEST} lists (SHA-256 differs); export it from the "
                f"same weights with {versions}"
            )
    names = (MANIFEST, *manifest.files, *companions(part))
    sources = {name: (encoder if name in missing else part) / name for name in names}
    return join_files(sources, part, out, overwrite=overwrite)
