"""ctypes bindings of the compiled `cpu` provider.

ctypes releases the GIL during a call, so threads run in parallel. `pip install` builds the library from
retrieve.cpp if there is a C++ compiler, and skips it otherwise.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.sections.errors import pass_out_of_memory

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
    """The compiled library is missing or does not load; the message says why."""


def built() -> bool:
    """Whether this installation includes the compiled library."""
    return _path() is not None


@cache
def library() -> ctypes.CDLL:
    """Load the compiled library. Raises NotCompiled, MemoryError."""
    path = _path()
    if path is None:
        raise NotCompiled("it was installed without a C++ compiler")
    try:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        pass_out_of_memory(error)
        raise NotCompiled(f"{path} does not load: {error}") from error
    return loaded


def check(status: int) -> None:
    """Raise MemoryError if a call returned non-zero."""
    if status:
        raise MemoryError("retrieval ran out of memory; give it fewer queries at once or a smaller bank")


def pointer(array: NDArray[Any], dtype: type[np.generic]) -> int:
    """The address of a C-contiguous `array` of `dtype`."""
    assert array.dtype == dtype and array.flags.c_contiguous, (array.dtype, array.strides)
    return int(array.ctypes.data)


def _path() -> Path | None:
    # The stable one first: a library of an older installation may still lie beside it.
    suffixes = sorted(EXTENSION_SUFFIXES, key=lambda suffix: ".abi3" not in suffix)
    candidates = (Path(__file__).with_name("_cpu" + suffix) for suffix in suffixes)
    return next((path for path in candidates if path.is_file()), None)
