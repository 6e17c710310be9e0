"""The stages of a run, from the times it keeps: shares, overlap, and the stage that bounds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAMES = ("read", "decode", "copy up", "encode", "retrieve", "copy down", "write")
"""In the order of the data's way."""

BESIDE = ("read", "decode", "copy up", "copy down")
"""Those that may run beside the others; on a device, encoding does too."""

ON_DEVICE = {"upload": "copy up", "encode": "encode", "download": "copy down"}
"""What the clock of a device's stages calls those that its events time."""


@dataclass(frozen=True)
class Stages:
    """Busy seconds by stage of NAMES (None: the run has no such stage) and the run's wall seconds.

    lanes: how many threads share a stage's busy time, 1 where not said. beside: the stages that need not wait for each
    other.
    """

    busy_s: Mapping[str, float | None]
    wall_s: float
    lanes: Mapping[str, int]
    beside: Sequence[str] = BESIDE

    def described(self) -> dict[str, Any]:
        """Describe them.

        stages: busy_s and its share of the wall time; shares add up to more than 1 where stages overlap.
        overlap: the sum of all busy times over the wall time; more than 1 needs stages side by side.
        bound: the stage whose busy time, divided by its lanes, is longest: no order of the same work is shorter.
        bound_share: that time over the wall time; 1 would be a run that waits for nothing else.
        elsewhere_s: of the wall time, what no stage that blocks the others accounts for.
        """
        held = {name: busy for name, busy in self.busy_s.items() if busy is not None}
        alone = {name: busy / self.lanes.get(name, 1) for name, busy in held.items()}
        bound = max(alone, key=lambda name: alone[name])
        blocking = sum(busy for name, busy in held.items() if name not in self.beside)
        return {
            "wall_s": self.wall_s,
            "stages": {
                name: None
                if self.busy_s.get(name) is None
                else {
                    "busy_s": held[name],
                    "share": held[name] / self.wall_s,
                    "lanes": self.lanes.get(name, 1),
                }
                for name in NAMES
            },
            "overlap": sum(held.values()) / self.wall_s,
            "bound": bound,
            "bound_share": alone[bound] / self.wall_s,
            "elsewhere_s": max(0.0, self.wall_s - blocking),
        }


def of_run(seconds: Mapping[str, float], *, workers: int) -> Stages:
    """The stages of a `Run.seconds`: `read` there is the reading threads' busy time, `file` of it the file's bytes.

    A run on a device has `upload` too, and `download` where embeddings come back to the host; its events time these and
    `encode`.
    """
    file = seconds.get("file")
    return Stages(
        {
            "read": file,
            "decode": seconds["read"] - (file or 0.0),
            **{stage: seconds.get(name) for name, stage in ON_DEVICE.items()},
            "retrieve": seconds["retrieve"],
            "write": seconds["write"],
        },
        seconds["total"],
        {"read": workers, "decode": workers},
        (*BESIDE, "encode") if "upload" in seconds else BESIDE,
    )
