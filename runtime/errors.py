"""Everything that can go wrong, and the exit code each kind leaves with.

    MclstError                1   (never raised itself)
    ├── InputError            4   something the user handed in is refused
    │   ├── SlideError            the slide
    │   ├── SpotsError            the spots table
    │   ├── BundleError           the bundle
    │   ├── CheckpointError       the checkpoint
    │   ├── ReferenceDataError    the measured sections
    │   ├── ParityError           the export does not equal the checkpoint
    │   └── ServerError           what a server answers is refused
    ├── OutputError           5   an output cannot be written
    └── ResourceError         6   memory, device or provider missing

A message is one sentence: what is wrong, where (file, row, tile), what to do.
`kernels` and `sections` lie below and raise ValueError; `mclst.runtime.console` translates at the border.
"""

from __future__ import annotations

import errno

from mclst.sections.errors import SectionError

DEFECT, INTERRUPTED, TERMINATED = 1, 130, 143
AGAIN = "nothing half-written is left behind, run the command again"


class MclstError(Exception):
    """Base of every error that is the user's to mend: shown as one sentence, without a traceback."""

    exit_code = 1


class InputError(MclstError):
    """Something handed in is refused."""

    exit_code = 4


class SlideError(InputError):
    """The slide cannot be opened or read."""


class SpotsError(InputError):
    """The spots do not fit the slide."""


class BundleError(InputError):
    """The bundle is damaged, incomplete or of another version."""


class CheckpointError(InputError):
    """The checkpoint is not one that mclst can trust and recognise."""


class ReferenceDataError(InputError):
    """The measured sections do not fit the checkpoint."""


class ParityError(InputError):
    """The exported graph does not give what the checkpoint gives."""


class ServerError(InputError):
    """A server answers, but not with what a bundle's server would."""


class OutputError(MclstError):
    """An output cannot be written."""

    exit_code = 5


class ResourceError(MclstError):
    """Memory, a device or a provider is missing."""

    exit_code = 6


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


TOO_FEW = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived: unwound like an interrupt, so that nothing half-written stays."""


def describe_error(error: BaseException) -> tuple[str, int]:
    """What went wrong, in a sentence for people, and its exit code; DEFECT where it is none that was foreseen."""
    if isinstance(error, MclstError):
        return _with_notes(str(error), error), error.exit_code
    if isinstance(error, SectionError):
        return str(error), 4
    if isinstance(error, MemoryError):
        text = (
            "this machine's memory is too small for the work; ask for less at once, such as a smaller batch"
        )
        return _with_notes(text, error), 6
    if isinstance(error, KeyboardInterrupt):
        return _with_notes("interrupted", error, AGAIN), INTERRUPTED
    if isinstance(error, Terminated):
        return _with_notes("terminated", error, AGAIN), TERMINATED
    if isinstance(error, OSError) and error.errno in TOO_FEW:
        text = f"this machine lets the process have no more ({error.strerror}); {RAISE}"
        return _with_notes(text, error), 6
    if isinstance(error, OSError) and error.errno in FULL:
        return f"{error.filename or 'standard output'} cannot be written ({error.strerror}); free space", 5
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return _with_notes(f"this machine lets the process have no more threads; {RAISE}", error), 6
    return "this is a defect in mclst; please report the lines above", DEFECT


RAISE = "raise its limits (ulimit -a), or ask for fewer --workers"


def _with_notes(sentence: str, error: BaseException, otherwise: str = "") -> str:
    """A sentence and what was noted on the error on its way up, such as what is kept for the next run."""
    notes = getattr(error, "__notes__", []) or ([otherwise] if otherwise else [])
    return "; ".join([sentence, *notes])
