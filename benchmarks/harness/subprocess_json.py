"""Call a function in a fresh process, so that its memory, imports and start are its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from mclst.runtime.errors import DEFECT, InputError, OutputError, ResourceError, describe_error

REFUSALS = {error.exit_code: error for error in (InputError, OutputError)}


def call_in_subprocess(
    function: Callable[..., Any], *, task: str, advice: str, timeout: float | None = None, **arguments: Any
) -> dict[str, Any]:
    """Call a module's function in a fresh process, and return its result by JSON.

    Parameters
    ----------
    function : callable
        Takes and returns plain values; it gets a Path as a string.
    task, advice : str
        Start and end of the error's sentence.
    timeout : float, optional
        Seconds.
    **arguments
        Of the function.

    Raises
    ------
    InputError, OutputError
        What the function refuses, in its own sentence.
    ResourceError
        If the process is killed, fails otherwise or exceeds `timeout`.
    """
    words = (function.__module__, function.__name__, json.dumps(arguments, default=str))
    command = [sys.executable, "-m", __name__, *words]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise ResourceError(f"{task} took more than {timeout:.0f} s; {advice}") from error
    if completed.returncode:
        last = (completed.stderr.strip().splitlines() or ["no message"])[-1]
        if refusal := REFUSALS.get(completed.returncode):
            raise refusal(last)
        raise ResourceError(f"{task} failed with status {completed.returncode} ({last[:200]}); {advice}")
    result: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    module, name, arguments = sys.argv[1:]
    try:
        print(json.dumps(getattr(import_module(module), name)(**json.loads(arguments))))
    except Exception as error:
        sentence, code = describe_error(error)
        if code == DEFECT:
            raise
        print(sentence, file=sys.stderr)
        sys.exit(code)
