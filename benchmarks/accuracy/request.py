"""What to cross-validate, as the command line says. Imports nothing slow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mclst.runtime.console import say
from mclst.runtime.errors import OutputError


@dataclass(frozen=True)
class Request:
    """Options of `mclst-bench accuracy` that systems and heads share; work: absolute."""

    paths: tuple[Path, ...]
    sections: str | None
    leave_out: str | None
    patient: str
    folds: tuple[str, ...]
    sweep: str | None
    work: Path
    jobs: int
    quiet: bool

    def say(self, text: str) -> None:
        """Print a line unless quiet."""
        say(text, quiet=self.quiet)

    def open_work(self) -> None:
        """Create the folder of finished folds; raises OutputError."""
        try:
            self.work.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.work} cannot be created ({error.strerror}); choose another --work"
            ) from error
