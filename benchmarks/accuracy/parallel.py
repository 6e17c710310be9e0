"""Folds in processes of their own: trainings share no random state, memory or threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mclst.runtime.errors import InputError, MclstError, OutputError, ResourceError

ERRORS = (InputError, OutputError, ResourceError)


def run_folds(folds: Sequence[str], words: Sequence[str], jobs: int, say: Callable[[str], None]) -> None:
    """Run `mclst-bench accuracy words… --fold FOLD` for each fold, `jobs` at once.

    Each keeps its scores in --work. A stop ends the processes; each goes on from its last epoch.

    Parameters
    ----------
    folds : sequence of str
    words : sequence of str
        Arguments and options of the command.
    jobs : int
        Processes at once; they share the CPU's threads.
    say : callable
        Called with what a process says, when it ends.

    Raises
    ------
    InputError, OutputError, ResourceError
        What the first process that fails says.
    """
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    processes: set[subprocess.Popen[str]] = set()
    stopped = threading.Event()

    def run_fold(fold: str) -> None:
        if stopped.is_set():
            return
        command = [sys.executable, "-m", "mclst.benchmarks.cli", "accuracy", *words, "--fold", fold]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
        )
        processes.add(process)
        _, text = process.communicate()
        processes.discard(process)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if process.returncode and not stopped.is_set():
            raise _failure(fold, process.returncode, lines[-1] if lines else "no message")
        for line in lines:
            if line.startswith("fold "):
                say(line)

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        try:
            for future in [pool.submit(run_fold, fold) for fold in folds]:
                future.result()
        except BaseException:
            stopped.set()
            for process in list(processes):
                process.terminate()
            raise


def _failure(fold: str, status: int, last: str) -> MclstError:
    kind = next((error for error in ERRORS if error.exit_code == status), ResourceError)
    return kind(f"fold {fold}: {last.removeprefix('Error: ')}")
