"""The GPU an engine was built on or for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Gpu:
    """A GPU: name, compute capability such as "8.6", and driver version."""

    # Configures pydantic, which validates manifests, without importing it here.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    name: str
    compute_capability: str
    driver: str

    @property
    def target(self) -> str:
        """The compute capability, such as "sm_86"."""
        return f"sm_{self.compute_capability.replace('.', '')}"
