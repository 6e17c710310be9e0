"""Error raised for unusable sections and spot tables, and what libraries raise for lack of memory."""

from __future__ import annotations

import errno
import re

_OUT_OF_MEMORY = re.compile(
    r"(memory|dataspace \w+) allocation (failed|NULLed)|allocate( original)? memory|out of memory"
    r"|bad[_ ]alloc|cannot allocate|insufficient memory"
    r"|failed to map segment|cannot map zero-fill pages",  # the dynamic loader's, which has no errno
    re.IGNORECASE,
)


class SectionError(ValueError):
    """A section or spot table cannot be used; the message names the file and the row in one sentence."""


class UnknownScale(SectionError):
    """A table is in µm, and the slide's µm per pixel is not known yet."""


class UnknownColumns(SectionError):
    """No columns of a table are known to hold positions."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: HDF5 and C++ libraries raise nearly every type for it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return not isinstance(error, SectionError) and _OUT_OF_MEMORY.search(str(error)) is not None


def pass_out_of_memory(error: BaseException) -> None:
    """Raise MemoryError if an error means that: what is read is not to blame."""
    if is_out_of_memory(error):
        raise MemoryError(str(error)) from error
