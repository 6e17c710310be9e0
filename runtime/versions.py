"""Versions of the installed packages that affect a map."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "mclst",
    "onnxruntime",
    "onnxruntime-gpu",
    "faiss-cpu",
    "numpy",
    "tifffile",
    "imagecodecs",
    "pillow",
    "simplejpeg",
    "openslide-bin",
)


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of those of `packages` that are installed, by name."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
