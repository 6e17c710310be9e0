"""The console commands, and how each answers a signal while it still imports.

Imports take up to seconds. Until `mclst.runtime.console` takes over, nothing has been written, so the process
exits at once with the sentence and the exit code it would have later. This module names the commands' modules
and imports nothing slow.
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from mclst.runtime.errors import INTERRUPTED, RUN_AGAIN, TERMINATED

STARTED = time.perf_counter()
"""When the process began to load its command."""

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

COMMANDS = {
    "mclst-train": ("mclst.training.cli", "Train mclSTExp or BLEEP on measured sections: a checkpoint."),
    "mclst-fit": (
        "mclst.training.fitting.cli",
        "Fit a head on a frozen encoder and measured sections: a checkpoint.",
    ),
    "mclst-export": (
        "mclst.export.cli",
        "Export a checkpoint: a bundle of graphs, reference bank and parity proof.",
    ),
    "mclst-infer": (
        "mclst.runtime.cli.infer",
        "Predict expression over a slide, or many: expression maps (.h5ad).",
    ),
    "mclst-report": ("mclst.runtime.cli.report", "Make a page, figures, tables and QuPath files from a map."),
    "mclst-bundle": (
        "mclst.runtime.cli.bundle",
        "Describe, verify, sign, pack and share bundles.",
    ),
    "mclst-eval": ("mclst.evaluation.cli", "Evaluate a map against measured expression."),
    "mclst-bench": ("mclst.benchmarks.cli", "Measure speed, memory and accuracy, beside other tools."),
    "mclst-demo": ("mclst.demo.cli", "Run the whole workflow on synthetic tissue."),
}
"""Each console command: its module, whose `main` it runs, and what it does."""


def install_signal_handlers(handler: Callable[[int, FrameType | None], object]) -> None:
    """Handle SIGINT, SIGTERM and SIGHUP; an ignored SIGHUP stays ignored, as nohup wants it."""
    for number in STOP_SIGNALS:
        if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def signal_handlers() -> dict[int, Any]:
    """The handlers of SIGINT, SIGTERM and SIGHUP, to be given back by `restore_signal_handlers`."""
    return {number: signal.getsignal(number) for number in STOP_SIGNALS}


def restore_signal_handlers(handlers: dict[int, Any]) -> None:
    """Give signals the handlers that they had; what was set outside Python stays."""
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, handler)


def exit_now(number: int, frame: FrameType | None) -> None:
    """End the process at once, with the sentence and the exit code of a stopped command."""
    interrupted = number == signal.SIGINT
    text = f"Error: {'interrupted' if interrupted else 'terminated'}; {RUN_AGAIN}\n"
    try:
        os.write(2, text.encode())
    finally:
        # No unwinding: a half-finished import would only print its own traceback.
        os._exit(INTERRUPTED if interrupted else TERMINATED)


LIBRARIES = {"PYDANTIC_DISABLE_PLUGINS": "__all__", "OPENBLAS_THREAD_TIMEOUT": "20"}
"""Set unless the user did. pydantic would look for plugins in every installed package. Threads of OpenBLAS
would spin for 30 ms after each product, beside the encoder; they sleep after 2^20 ticks, half a millisecond.
"""


def _entry_point(command: str) -> Callable[[], None]:
    def run() -> None:
        install_signal_handlers(exit_now)
        for name, value in LIBRARIES.items():
            os.environ.setdefault(name, value)
        try:
            importlib.import_module(COMMANDS[command][0]).main()
        except SystemExit as end:
            _end(end.code)
            raise

    return run


def _end(code: str | int | None) -> None:
    """End the process without freeing its objects one by one, which takes a fifth of a second.

    As multiprocessing ends its children: threads are waited for and atexit's functions called, unless a
    signal stopped the command and threads are busy in native code. Returns where Python has something to say.
    """
    if isinstance(code, str):
        return
    stopped = code in (INTERRUPTED, TERMINATED)
    if not stopped:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            if not stopped:
                return
    os._exit(code or 0)


train = _entry_point("mclst-train")
fit = _entry_point("mclst-fit")
export = _entry_point("mclst-export")
infer = _entry_point("mclst-infer")
report = _entry_point("mclst-report")
bundle = _entry_point("mclst-bundle")
evaluate = _entry_point("mclst-eval")
bench = _entry_point("mclst-bench")
demo = _entry_point("mclst-demo")


def overview() -> None:
    """List the commands, one line each: `mclst`."""
    install_signal_handlers(exit_now)
    import click

    @click.command("mclst", context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(package_name="mclst")
    def main() -> None:
        """List the commands of mclst; each has --help."""
        for name, (_, summary) in COMMANDS.items():
            click.echo(f"{name:<12}  {summary}")

    main()
