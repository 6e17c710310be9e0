"""How hypothesis runs here: the same examples each time, however slow the machine is.

`HYPOTHESIS_PROFILE=exploring pytest …` tries other examples, and remembers those that failed.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_TIMED = [HealthCheck.too_slow]
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, database=None, suppress_health_check=_TIMED
)
settings.register_profile("exploring", deadline=None, suppress_health_check=_TIMED)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

quick = settings(max_examples=60, suppress_health_check=list(HealthCheck))
"""For what writes files: fewer examples, in the folders of a fixture that all of them share."""
