"""Work in a fresh process that tells what it found as one JSON object: for what only such a process can tell."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from mclst.runtime.errors import ResourceError


def run_apart(
    module: str, words: Sequence[str], *, what: str, advice: str, timeout: float | None = None
) -> dict[str, Any]:
    """Run `python -m module words…`; the JSON object on the last line of its stdout.

    what, advice: beginning and end of the sentence where it is killed, fails or takes more than `timeout` seconds;
    that is a ResourceError.
    """
    command = [sys.executable, "-m", module, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise ResourceError(f"{what} took more than {timeout:.0f} s; {advice}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ResourceError(f"{what} failed with status {done.returncode} ({last[:200]}); {advice}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
