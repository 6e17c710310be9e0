"""The compiled part, and the libjpeg-turbo that it decodes by.

`pip install` builds the part from jpeg_batch.cpp if there is a C++ compiler. Without it segments are decoded
one by one. No headers of libjpeg are needed: the library is the one that Pillow brings, or the system's.
"""

from __future__ import annotations

import ctypes
import importlib.util
import io
import logging
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mclst.sections.errors import pass_out_of_memory

_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "mclst_jpeg_open": (_POINTER, [ctypes.c_char_p]),
    "mclst_jpeg_decode": (
        ctypes.c_double,
        [
            *(_POINTER, _INT, _INT64, _POINTER, _POINTER, _POINTER),
            *(ctypes.c_char_p, _INT64, ctypes.c_char_p, _INT64),
            *(_INT64, _INT64, _INT64, _INT64, _POINTER, _POINTER),
        ],
    ),
    "mclst_needed": (_INT64, [_INT64, _POINTER, *(_INT64,) * 6, ctypes.c_char_p, *(_POINTER,) * 3]),
    "mclst_cut": (_INT64, [_INT64, _POINTER, *(_INT64,) * 6, *(_POINTER,) * 4]),
}
_log = logging.getLogger(__name__)
_SONAMES = ("libjpeg.so.62", "libjpeg.62.dylib")


@cache
def compiled() -> ctypes.CDLL | None:
    """The compiled part; None if it was not built or does not load."""
    return load_compiled("_jpeg_batch", _FUNCTIONS)


def load_compiled(part: str, functions: Mapping[str, tuple[Any, list[Any]]]) -> ctypes.CDLL | None:
    """Load a compiled part of this package; None if it was not built or, with a warning, does not load.

    functions: result and arguments of each, by name.
    """
    for suffix in sorted(EXTENSION_SUFFIXES, key=lambda suffix: ".abi3" not in suffix):
        path = Path(__file__).with_name(f"{part}{suffix}")
        if path.is_file():
            try:
                loaded = ctypes.CDLL(str(path))
                for name, (result, arguments) in functions.items():
                    function = getattr(loaded, name)
                    function.restype, function.argtypes = result, arguments
            except (OSError, AttributeError) as error:
                pass_out_of_memory(error)
                _log.warning(
                    "%s was built elsewhere or from other sources, install again: %s", path.name, error
                )
                return None
            return loaded
    return None


@cache
def libjpeg() -> int | None:
    """Address of a libjpeg-turbo that decodes here as Pillow does; None without one."""
    functions = compiled()
    if functions is None or ctypes.sizeof(ctypes.c_long) != 8 or ctypes.sizeof(_POINTER) != 8:
        return None
    for path in candidates():
        address = functions.mclst_jpeg_open(path.encode())
        if address and _decodes(functions, address):
            return int(address)
    return None


def candidates() -> list[str]:
    """Libraries to try, Pillow's first."""
    spec = importlib.util.find_spec("PIL")
    folders = [] if spec is None or spec.origin is None else [Path(spec.origin).parent]
    paths = []
    for folder in folders:
        for pattern in ("../pillow.libs/libjpeg-*.so.62*", ".dylibs/libjpeg.62*.dylib"):
            paths += sorted(str(path.resolve()) for path in folder.glob(pattern))
    return [*paths, *_SONAMES]


def _decodes(functions: ctypes.CDLL, address: int) -> bool:
    """Whether a small picture, through this code and library, has Pillow's pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (23, 37, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    data = stream.getvalue()
    expected = np.asarray(Image.open(io.BytesIO(data)))
    out = np.empty_like(expected, order="C")
    offset, count = np.array([1], np.int64), np.array([len(data)], np.int64)
    key, done = np.zeros(1, np.int64), np.zeros(1, np.uint8)
    pointers = np.array([out.ctypes.data], np.uint64)
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"\0" + data)
            file.flush()
            functions.mclst_jpeg_decode(
                address, file.fileno(), 1, key.ctypes.data, offset.ctypes.data, count.ctypes.data,
                data[:2], 2, data[:2], 2, 37, 23, 37, 23, pointers.ctypes.data, done.ctypes.data,
            )  # fmt: skip
    except OSError:
        return False
    return bool(done[0]) and np.array_equal(out, expected)
