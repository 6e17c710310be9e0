"""The console commands: how each starts, so that a signal during its imports is answered as during its work.

A command's imports take a second or more. Until `mclst.runtime.console` takes over nothing has been written, so the
process ends where it stands, with the sentence and the exit code that it would have later. This module imports nothing
slow, and names the commands' modules instead of importing them.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable
from types import FrameType

from mclst.runtime.errors import AGAIN, INTERRUPTED, TERMINATED

STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def install_signal_handlers(answer: Callable[[int, FrameType | None], object]) -> None:
    """Answer SIGINT, SIGTERM and SIGHUP with `answer`; the last not where it is ignored, as it is under nohup."""
    for number in STOPS:
        if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, answer)


def _leave(number: int, frame: FrameType | None) -> None:
    interrupted = number == signal.SIGINT
    text = f"Error: {'interrupted' if interrupted else 'terminated'}; {AGAIN}\n"
    try:
        os.write(2, text.encode())
    finally:
        # No unwinding: half an import would only add a traceback of its own.
        os._exit(INTERRUPTED if interrupted else TERMINATED)


def _command(module: str) -> Callable[[], None]:
    def run() -> None:
        install_signal_handlers(_leave)
        importlib.import_module(module).main()

    return run


export = _command("mclst.export.cli")
infer = _command("mclst.runtime.cli.infer")
report = _command("mclst.runtime.cli.report")
train = _command("mclst.training.cli")
evaluate = _command("mclst.evaluation.cli")
bench = _command("mclst.benchmarks.cli")
demo = _command("mclst.demo.cli")
