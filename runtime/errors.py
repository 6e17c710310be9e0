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
`kernels` and `sections` lie below and raise ValueError; `mclst.runtime.command` translates at the border.
"""

from __future__ import annotations


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
