"""Stages of a run: busy time, share, overlap, and the stage that limits the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAMES = ("read", "decode", "copy up", "encode", "retrieve", "copy down", "write")
"""In the order of the data flow."""

CONCURRENT = ("read", "decode", "copy up", "copy down")
"""Stages that run beside the others; on a device, encoding does too."""

DEVICE_STAGES = {"upload": "copy up", "encode": "encode", "download": "copy down"}
"""Names of the device clock's stages → names in NAMES."""


@dataclass(frozen=True)
class Stages:
    """Busy seconds by stage of NAMES (None: the run has no such stage) and the run's wall seconds.

    threads: how many threads share a stage's busy time, by default 1. concurrent: stages that need not wait
    for each other.
    """

    busy_s: Mapping[str, float | None]
    wall_s: float
    threads: Mapping[str, int]
    concurrent: Sequence[str] = CONCURRENT

    def summary(self) -> dict[str, Any]:
        """Summarize as a JSON object.

        Returns
        -------
        dict
            `stages`: busy_s, its share of the wall time and its threads; shares of overlapping stages exceed
            1 in sum. `overlap`: all busy times over the wall time. `bound`: the stage with the longest busy
            time per thread, a lower bound on the run time. `bound_share`: that time over the wall time.
            `elsewhere_s`: wall time that no blocking stage accounts for.
        """
        busy = {name: seconds for name, seconds in self.busy_s.items() if seconds is not None}
        per_thread = {name: seconds / self.threads.get(name, 1) for name, seconds in busy.items()}
        bound = max(per_thread, key=lambda name: per_thread[name])
        blocking = sum(seconds for name, seconds in busy.items() if name not in self.concurrent)
        return {
            "wall_s": self.wall_s,
            "stages": {
                name: {
                    "busy_s": busy[name],
                    "share": busy[name] / self.wall_s,
                    "lanes": self.threads.get(name, 1),
                }
                if name in busy
                else None
                for name in NAMES
            },
            "overlap": sum(busy.values()) / self.wall_s,
            "bound": bound,
            "bound_share": per_thread[bound] / self.wall_s,
            "elsewhere_s": max(0.0, self.wall_s - blocking),
        }


def stages_of_run(seconds: Mapping[str, float], *, workers: int) -> Stages:
    """Stages of a `Run.seconds`.

    Its `read` is the reading threads' busy time, of which `file` is spent on the file's bytes. A run on a
    device also has `upload`, and `download` where embeddings return to the host; device events time these and
    `encode`.
    """
    file = seconds.get("file")
    return Stages(
        {
            "read": file,
            "decode": seconds["read"] - (file or 0.0),
            **{stage: seconds.get(name) for name, stage in DEVICE_STAGES.items()},
            "retrieve": seconds["retrieve"],
            "write": seconds["write"],
        },
        seconds["total"],
        {"read": workers, "decode": workers},
        (*CONCURRENT, "encode") if "upload" in seconds else CONCURRENT,
    )
