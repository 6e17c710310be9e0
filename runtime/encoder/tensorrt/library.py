"""The TensorRT that is installed: two flavours with one Python interface."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal, get_args

from mclst.runtime.errors import ResourceError

Flavour = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)
MAJORS = {"tensorrt": (10, 11), "tensorrt-rtx": (1,)}
"""Major versions whose interface these files know."""

_MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_INSTALL = {
    "tensorrt": "install mclst[tensorrt]; on a Jetson use the python3-libnvinfer package of its JetPack",
    "tensorrt-rtx": "install mclst[rtx]",
}


@dataclass(frozen=True)
class Library:
    """A loaded flavour: its module and its version of three or four numbers."""

    flavour: Flavour
    trt: Any
    version: str

    def __str__(self) -> str:
        return f"{self.flavour} {self.version}"


def load_library(flavour: Flavour) -> Library:
    """Import the flavour, "tensorrt" or "tensorrt-rtx".

    Needs no GPU. Raises ResourceError, saying what to install, where it is missing, does not load or is of a major
    version that is not known.
    """
    reason = ""
    for name in _MODULES[flavour]:
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                reason = f"{name} does not load: {error}"
            continue
        except (ImportError, OSError, RuntimeError) as error:
            reason = f"{name} does not load: {' '.join(str(error).split())[:120]}"
            continue
        return _checked(flavour, found)
    raise ResourceError(f"{flavour} is not installed{f' ({reason})' if reason else ''}; {_INSTALL[flavour]}")


def _checked(flavour: Flavour, module: Any) -> Library:
    version = str(getattr(module, "__version__", ""))
    if not hasattr(module, "Builder"):
        raise ResourceError(
            f"the module {module.__name__} that is installed is not {flavour}; {_INSTALL[flavour]}"
        )
    major = version.split(".")[0]
    if not major.isdigit() or int(major) not in MAJORS[flavour]:
        known = " or ".join(f"{number}.x" for number in MAJORS[flavour])
        raise ResourceError(f"{flavour} {version} is installed and mclst knows {known}; {_INSTALL[flavour]}")
    return Library(flavour, module, version)


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
