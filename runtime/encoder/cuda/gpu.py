"""A GPU as engines know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Gpu:
    """A device: its name, its compute capability as "8.6", and the driver's version."""

    # Read by pydantic where a manifest holds one; a device is looked at where pydantic is not installed too.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    name: str
    compute_capability: str
    driver: str

    @property
    def target(self) -> str:
        """The compute capability as "sm_86"."""
        return f"sm_{self.compute_capability.replace('.', '')}"
