"""Versions of the installed packages that shape a result."""

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
    """Versions of the packages that shape a map, by name."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
