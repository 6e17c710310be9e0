"""Everything that can go wrong, and the exit code each kind leaves with.

    MclstError                1   (never raised itself)
    ├── InputError            4   an input is refused
    │   ├── SlideError            the slide
    │   │   └── StainError            the slide is not stained with H&E
    │   ├── SpotsError            the spots table
    │   ├── BundleError           the bundle
    │   ├── CheckpointError       the checkpoint
    │   ├── ReferenceDataError    the measured sections
    │   ├── ParityError           the export does not equal the checkpoint
    │   └── ServerError           what a server answers is refused
    ├── OutputError           5   an output cannot be written
    └── ResourceError         6   memory, device or provider missing

A message is one sentence: what is wrong, where (file, row, tile), what to do.
`kernels` and `sections` stand below and raise ValueError; `describe_error` gives those an exit code too.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mclst.sections.errors import SectionError, is_out_of_memory

DEFECT, INTERRUPTED, TERMINATED = 1, 130, 143
RUN_AGAIN = "nothing half-written is left behind, run the command again"


class MclstError(Exception):
    """Base of every error the user can fix: shown as one sentence, without a traceback."""

    exit_code = 1


class InputError(MclstError):
    """An input is refused."""

    exit_code = 4


class SlideError(InputError):
    """The slide cannot be opened or read."""


class StainError(SlideError):
    """The slide is not stained with hematoxylin and eosin."""


class SpotsError(InputError):
    """The spots do not fit the slide."""


class BundleError(InputError):
    """The bundle is damaged, incomplete or of another version."""


class CheckpointError(InputError):
    """The checkpoint is damaged, unsafe or unknown."""


class ReferenceDataError(InputError):
    """The measured sections do not fit the checkpoint."""


class ParityError(InputError):
    """The exported graph and the checkpoint disagree."""


class ServerError(InputError):
    """A server answers with something other than a bundle's server would."""


class OutputError(MclstError):
    """An output cannot be written."""

    exit_code = 5


class ResourceError(MclstError):
    """Memory, a device or a provider is missing.

    of_every_slide: whether other slides of a cohort would miss it too.
    """

    exit_code = 6
    of_every_slide = False


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived: unwound like an interrupt, so that nothing half-written stays."""


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a failed import into a ResourceError that names the package and the extra with it."""
    try:
        yield
    except ImportError as error:
        raise ResourceError(f"{error.name} is not installed; install mclst[{extra}]") from error


def write_error(path: Path | str, error: BaseException, advice: str = "free space") -> MclstError:
    """Return what to raise where `path` cannot be written: OutputError; ResourceError if memory ran out."""
    if is_out_of_memory(error):
        return ResourceError(f"{path} is not written, for {_TOO_LITTLE_MEMORY}")
    reason = (isinstance(error, OSError) and error.strerror) or (str(error).splitlines() or [""])[0]
    return OutputError(f"{path} cannot be written ({reason}); {advice}")


def describe_error(error: BaseException) -> tuple[str, int]:
    """Say what went wrong in a sentence, with its exit code; DEFECT for what was not foreseen."""
    sentence, code = _describe(error)
    return say_how_in_a_clone(sentence, Path(__file__).resolve().parents[1]), code


def say_how_in_a_clone(sentence: str, root: Path) -> str:
    """Add how a clone at `root` installs the extra that a sentence names; an installed mclst has none."""
    extra = _EXTRA.search(sentence)
    if extra is None or not (root / "pyproject.toml").is_file():
        return sentence
    return f"{sentence} (in this clone: pip install -e '{root}{extra[1]}')"


_EXTRA = re.compile(r"\bmclst(\[[a-z,-]+\])")


def _describe(error: BaseException) -> tuple[str, int]:
    if isinstance(error, MclstError):
        return _with_notes(str(error), error), error.exit_code
    if isinstance(error, SectionError):
        return str(error), InputError.exit_code
    if isinstance(error, KeyboardInterrupt):
        return _with_notes("interrupted", error, RUN_AGAIN), INTERRUPTED
    if isinstance(error, Terminated):
        return _with_notes("terminated", error, RUN_AGAIN), TERMINATED
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        sentence = f"{error.filename or 'standard output'} cannot be written ({error.strerror}); free space"
        return sentence, OutputError.exit_code
    if isinstance(error, ImportError) and is_out_of_memory(error):
        sentence = f"this machine's memory is too small to load a library ({_library_of(error)})"
    elif isinstance(error, ImportError) and any(words in str(error) for words in _LIBRARY_NOT_OPENED):
        sentence = f"this machine lets the process open no more of a library ({error}); {_RAISE_LIMITS}"
    elif is_out_of_memory(error):
        sentence = _TOO_LITTLE_MEMORY
    elif isinstance(error, OSError) and error.errno in _LIMIT_REACHED:
        sentence = f"this machine lets the process have no more ({error.strerror}); {_RAISE_LIMITS}"
    elif isinstance(error, RuntimeError) and "start new thread" in str(error):
        sentence = f"this machine lets the process have no more threads; {_RAISE_LIMITS}"
    else:
        return "this is a defect in mclst; please report the lines above", DEFECT
    return _with_notes(sentence, error), ResourceError.exit_code


def _library_of(error: ImportError) -> str:
    """Name the library that was not loaded; the dynamic loader puts its path before the first colon."""
    return error.name or str(error).partition(":")[0]


_TOO_LITTLE_MEMORY = (
    "this machine's memory is too small for the work; ask for less at once, such as a smaller batch"
)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LIMIT_REACHED = (errno.EMFILE, errno.ENFILE, errno.EAGAIN)
# imagecodecs opens a codec on first use, and says no more than this where no file can be opened any more.
_LIBRARY_NOT_OPENED = ("Too many open files", "from 'imagecodecs'")
_RAISE_LIMITS = "raise its limits (ulimit -a), or ask for fewer --workers"


def _with_notes(sentence: str, error: BaseException, default: str = "") -> str:
    """Append the notes added to the error on its way up, such as what is kept for the next run."""
    notes = getattr(error, "__notes__", []) or ([default] if default else [])
    return "; ".join([sentence, *notes])
