"""The compiled part of the `cpu` provider: found, loaded once, and its functions declared.

It is plain C seen through ctypes, which lets go of the interpreter during a call, so that threads run side by side.
`pip install` builds it from retrieve.cpp where a C++ compiler is found, and leaves it out where none is.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_POINTER, _INT64, _INT, _DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "mclst_best_lanes": (_INT, []),
    "mclst_bank": (_POINTER, [_POINTER, _INT64, _INT64, _INT, _INT]),
    "mclst_free": (None, [_POINTER]),
    "mclst_search": (_INT, [_POINTER, _POINTER, _INT64, _INT64, _POINTER, _POINTER, _POINTER, _POINTER]),
    "mclst_weigh": (
        _INT,
        [_POINTER, _POINTER, _INT64, _INT64, _POINTER, _INT, _INT, _DOUBLE, _POINTER, _POINTER, _POINTER],
    ),
    "mclst_slab_sums": (
        _INT,
        [_INT, _POINTER, _INT, _INT64, _POINTER, _POINTER, _INT64, _INT64, _POINTER, _INT64, _INT64, _INT64],
    ),
}


class NotCompiled(ImportError):
    """The compiled part is not there or does not load; the message says why."""


def built() -> bool:
    """Whether the compiled part was built into this installation."""
    return _path() is not None


@cache
def library() -> ctypes.CDLL:
    """The compiled part, its functions declared. Raises NotCompiled."""
    path = _path()
    if path is None:
        raise NotCompiled("it was installed without a C++ compiler")
    try:
        found = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NotCompiled(f"{path} does not load: {error}") from error
    return found


def check(failed: int) -> None:
    """Raise MemoryError where a call ran out of memory."""
    if failed:
        raise MemoryError("retrieval ran out of memory; give it fewer queries at once or a smaller bank")


def pointer(array: NDArray[Any], dtype: type[np.generic]) -> int:
    """The address of `array`, which has to be of `dtype` and in C order."""
    assert array.dtype == dtype and array.flags.c_contiguous, (array.dtype, array.strides)
    return int(array.ctypes.data)


def _path() -> Path | None:
    here = (Path(__file__).with_name("_cpu" + suffix) for suffix in EXTENSION_SUFFIXES)
    return next((path for path in here if path.is_file()), None)
