"""Versions of the installed packages that affect a map."""

from __future__ import annotations

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


def installed_versions() -> dict[str, str]:
    """Versions by package name."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
