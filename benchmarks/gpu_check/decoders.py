"""Decoders of JPEG tiles for `make gpu-check`, on a machine that has this tree and no package for it."""

from __future__ import annotations

import importlib.machinery
import io
import shutil
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mclst.runtime.decoding import library


def prepare() -> str:
    """Build the batch decoder if it is missing, and let Pillow stand in for simplejpeg; say what decodes.

    Pillow does not refuse damaged streams as simplejpeg does, so it stands in for a measurement alone.
    """
    alone = "simplejpeg"
    if find_spec("simplejpeg") is None:
        alone = "Pillow"
        module = types.ModuleType("simplejpeg")
        module.__spec__ = importlib.machinery.ModuleSpec("simplejpeg", None)
        module.__dict__["decode_jpeg"] = _by_pillow
        sys.modules["simplejpeg"] = module
    if library.compiled() is None and (gxx := shutil.which("g++")):
        folder = Path(library.__file__).resolve().parent
        built = folder / "_jpeg_batch.abi3.so"
        command = [gxx, "-std=c++17", "-O2", "-shared", "-fPIC", "-o", str(built), "-ldl"]
        subprocess.run([*command, str(folder / "src" / "jpeg_batch.cpp")], check=False, capture_output=True)
        library.compiled.cache_clear()
        library.libjpeg.cache_clear()
    return alone if library.libjpeg() is None else f"batches by libjpeg-turbo, else {alone}"


def _by_pillow(data: bytes, *, colorspace: str, strict: bool) -> np.ndarray[Any, np.dtype[np.uint8]]:
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert({"GRAY": "L"}.get(colorspace, colorspace)))
    return pixels[..., None] if pixels.ndim == 2 else pixels
