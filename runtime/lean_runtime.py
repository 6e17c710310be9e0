"""TensorRT's lean runtime of an older version, for engines that were built to outlive theirs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from mclst.runtime.errors import ResourceError

PACKAGES = ("tensorrt-lean-cu13-libs", "tensorrt-lean-cu12-libs")
_LIBRARY = "libnvinfer_lean.so"


def lean_library(version: str) -> Path:
    """The library of the lean runtime of exactly `version`; raises ResourceError where it is not installed."""
    for package in PACKAGES:
        try:
            found = distribution(package)
        except PackageNotFoundError:
            continue
        if found.version == version:
            for file in found.files or ():
                if file.name.startswith(_LIBRARY):
                    return Path(str(found.locate_file(file)))
    raise ResourceError(
        f"the engine was built by TensorRT {version}, whose lean runtime is not installed; "
        f"install {PACKAGES[0]} or {PACKAGES[1]} of that version, or build an engine here"
    )
