"""What a run may be told."""

from __future__ import annotations

MAX_BAD_TILES = "1%"
