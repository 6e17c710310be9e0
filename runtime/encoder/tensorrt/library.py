"""The installed TensorRT: its Python module in two flavors, and its lean runtimes."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal, get_args

from mclst.runtime.errors import ResourceError

Flavor = Literal["tensorrt", "tensorrt-rtx"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)

# Supported major versions.
_MAJORS = {"tensorrt": (10, 11), "tensorrt-rtx": (1,)}
# Modules by preference.
_MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_INSTALL = {
    "tensorrt": "install mclst[tensorrt]; on a Jetson use the python3-libnvinfer package of its JetPack",
    "tensorrt-rtx": "install mclst[rtx]",
}
_LEAN_PACKAGES = ("tensorrt-lean-cu13-libs", "tensorrt-lean-cu12-libs")
_LEAN_LIBRARY = "libnvinfer_lean.so"


@dataclass(frozen=True)
class Library:
    """A loaded flavor of TensorRT: its Python module `trt` and its version."""

    flavor: Flavor
    trt: Any
    version: str

    def __str__(self) -> str:
        return f"{self.flavor} {self.version}"


def load_library(flavor: Flavor) -> Library:
    """Import TensorRT; needs no GPU.

    Raises ResourceError if the flavor is missing, does not load or is of an unsupported major version.
    """
    reason = ""
    for name in _MODULES[flavor]:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                reason = f"{name} does not load: {error}"
            continue
        except (ImportError, OSError, RuntimeError) as error:
            reason = f"{name} does not load: {' '.join(str(error).split())[:120]}"
            continue
        return _checked(flavor, module)
    raise ResourceError(f"{flavor} is not installed{f' ({reason})' if reason else ''}; {_INSTALL[flavor]}")


def lean_library(version: str) -> Path:
    """Path of the lean runtime of exactly `version`; ResourceError if it is not installed."""
    for package in _LEAN_PACKAGES:
        try:
            installed = distribution(package)
        except PackageNotFoundError:
            continue
        if installed.version == version:
            for file in installed.files or ():
                if file.name.startswith(_LEAN_LIBRARY):
                    return Path(str(installed.locate_file(file)))
    raise ResourceError(
        f"the engine was built by TensorRT {version}, whose lean runtime is not installed; "
        f"install {_LEAN_PACKAGES[0]} or {_LEAN_PACKAGES[1]} of that version, or build an engine here"
    )


def _checked(flavor: Flavor, module: Any) -> Library:
    version = str(getattr(module, "__version__", ""))
    # Another package may have taken the module's name.
    if not hasattr(module, "Builder"):
        raise ResourceError(
            f"the module {module.__name__} that is installed is not {flavor}; {_INSTALL[flavor]}"
        )
    major = version.split(".")[0]
    if not major.isdigit() or int(major) not in _MAJORS[flavor]:
        known = " or ".join(f"{number}.x" for number in _MAJORS[flavor])
        raise ResourceError(f"{flavor} {version} is installed and mclst knows {known}; {_INSTALL[flavor]}")
    return Library(flavor, module, version)
