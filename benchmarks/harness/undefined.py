"""Undefined numbers in results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def none_if_undefined(value: Any) -> Any:
    """Replace numbers that are not finite by None, also inside lists and mappings, as JSON has none."""
    if isinstance(value, Mapping):
        return {name: none_if_undefined(own) for name, own in value.items()}
    if isinstance(value, list):
        return [none_if_undefined(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
