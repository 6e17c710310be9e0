"""A run under way: what it works on, what it has found out, how many tiles it may lose."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.errors import SlideError
from mclst.runtime.progress import Advance, Clock, Tell
from mclst.runtime.run.outputs import Outputs
from mclst.runtime.slide.base import Slide
from mclst.runtime.tiling.array_pitch import Resolution
from mclst.runtime.tiling.grid import Grid
from mclst.sections.section import Spots


def most_bad_tiles(limit: int | str, tiles: int) -> int:
    """How many of `tiles` may be unreadable: `limit` itself, or its share where it is as "1%", rounded up.

    Raises ValueError where it is neither a number of tiles nor a share of 0-100 %.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", str(limit).strip())
    if not match or (match[2] and float(match[1]) > 100) or ("." in match[1] and not match[2]):
        raise ValueError(f"{limit!r} is neither a number of tiles nor a share such as 1%")
    return math.ceil(float(match[1]) * tiles / 100) if match[2] else int(match[1])


@dataclass
class Work:
    """A run under way."""

    bundle: Bundle
    slide: Slide
    spots: Spots
    grid: Grid | None
    spec: RetrievalSpec | None
    outputs: Outputs
    resolution: Resolution
    most_bad: int
    overwrite: bool
    advance: Advance
    tell: Tell
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: Clock = field(default_factory=lambda: Clock(encode=0.0, retrieve=0.0, write=0.0))
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    carried_on: int = 0
    told: dict[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None

    def note(self, text: str) -> None:
        """Something the user must know, now and in the report."""
        self.notes.append(text)
        self.tell(text)

    def fail_tiles(self, rows: Sequence[tuple[int, str]]) -> None:
        """Note tiles that cannot be read; SlideError where they are too many."""
        self.failed += [(str(self.spots.id[row]), reason) for row, reason in rows]
        if len(self.failed) > self.most_bad:
            spot, reason = self.failed[0]
            raise SlideError(
                f"{self.slide.path}: more than {self.most_bad:,} of {len(self.spots):,} tiles cannot be read, first "
                f"that of spot {spot} ({reason}); copy the slide again, or give --max-bad-tiles"
            )
