"""`engine.json`: what an engine was built from and for, and the hash of its bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from mclst.runtime.bundle.manifest import FileRecord, Part
from mclst.runtime.encoder.cuda.gpu import Gpu
from mclst.runtime.encoder.tensorrt.library import Flavour

ENGINE_MANIFEST, PLAN = "engine.json", "engine.plan"
MAX_BYTES = 1 << 20

Target = str
"""A compute capability as `sm_86`."""


class EngineKey(Part):
    """Everything that shapes an engine; engines themselves differ from build to build.

    onnx_sha256: of the graph, and of its weights where they lie beside it. targets: of tensorrt-rtx, the compute
    capabilities it is built for. gpu: of tensorrt, the device it was built on. max_batch: tiles at once, from 1.
    workspace_bytes: the builder's limit, null for its own. platform: system and processor.
    """

    onnx_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    precision: str
    flavour: Flavour
    version: str
    max_batch: int = Field(ge=1, le=4096)
    targets: tuple[Target, ...] = ()
    gpu: Gpu | None = None
    workspace_bytes: int | None = Field(default=None, ge=1)
    version_compatible: bool = False
    hardware_compatible: bool = False
    platform: str

    @property
    def folder(self) -> str:
        """Its name under `engines/`: SHA-256 of the key's canonical JSON, 16 digits."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class EngineManifest(Part):
    """An engine's own manifest.

    output: the tensor it gives. tile_px: side of the tiles it takes. layers: of its network, by the type they give.
    seconds: the build took.
    """

    format: Literal["mclst-engine/1"]
    key: EngineKey
    output: str
    tile_px: int = Field(ge=8, le=4096)
    layers: dict[str, int]
    plan: FileRecord
    seconds: float = Field(ge=0)


def read_engine_manifest(path: Path) -> EngineManifest:
    """Read and validate; raises ValueError, saying what is wrong with it, and OSError."""
    if path.is_symlink() or path.stat().st_size > MAX_BYTES:
        raise ValueError(f"its {path.name} is no plain file of a few kilobytes")
    try:
        return EngineManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"its {path.name} is damaged ({where}: {first['msg'].lower()})") from error
