"""Run work in a fresh process that prints its result as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from mclst.runtime.errors import ResourceError


def run_json_subprocess(
    module: str, arguments: Sequence[str], *, task: str, advice: str, timeout: float | None = None
) -> dict[str, Any]:
    """Run `python -m module arguments…` and parse the last line of its stdout.

    Parameters
    ----------
    task, advice : str
        Start and end of the error's sentence.
    timeout : float, optional
        Seconds.

    Raises
    ------
    ResourceError
        If the process is killed, fails or exceeds `timeout`.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise ResourceError(f"{task} took more than {timeout:.0f} s; {advice}") from error
    if completed.returncode:
        last = (completed.stderr.strip().splitlines() or ["no message"])[-1]
        raise ResourceError(f"{task} failed with status {completed.returncode} ({last[:200]}); {advice}")
    result: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return result
