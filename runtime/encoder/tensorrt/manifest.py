"""`engine.json`: the key of an engine, facts about it, and the hash of its bytes."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, ValidationError

from mclst.runtime.bundle.manifest import FileRecord
from mclst.runtime.bundle.strict_model import StrictModel
from mclst.runtime.encoder.cuda.gpu import Gpu
from mclst.runtime.encoder.tensorrt.library import Flavor

ENGINE_MANIFEST, PLAN = "engine.json", "engine.plan"
MAX_BYTES = 1 << 20

# A compute capability, such as "sm_86".
Target = str


class EngineKey(StrictModel):
    """Everything that determines an engine, whose bytes differ from build to build.

    Attributes
    ----------
    onnx_sha256 : str
        Hash of the graph and its external weights.
    precision : str
        Precision of the graph.
    flavor, version : str
        The TensorRT that built it.
    max_batch : int
        Most tiles per batch.
    targets : tuple of str
        tensorrt-rtx: the compute capabilities it was built for.
    gpu : Gpu, optional
        tensorrt: the device it was built on.
    workspace_bytes : int, optional
        The builder's limit; None for TensorRT's default.
    version_compatible, hardware_compatible : bool
        tensorrt: whether it also runs with newer versions, and on Ampere and newer devices.
    platform : str
        System and processor.
    """

    onnx_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    precision: str
    # Engines built before have the key "flavour".
    flavor: Flavor = Field(validation_alias=AliasChoices("flavor", "flavour"))
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
        """Folder name under `engines/`: 16 digits of the SHA-256 of the key's canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class EngineManifest(StrictModel):
    """Content of `engine.json`; see `BuiltEngine` for the fields."""

    format: Literal["mclst-engine/1"]
    key: EngineKey
    output: str
    tile_px: int = Field(ge=8, le=4096)
    layers: dict[str, int]
    plan: FileRecord
    seconds: float = Field(ge=0)


def read_engine_manifest(path: Path) -> EngineManifest:
    """Read and validate `engine.json`; raises ValueError or OSError."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        raise ValueError(f"its {path.name} is no plain file of a few kilobytes")
    try:
        return EngineManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"its {path.name} is damaged ({field}: {first['msg'].lower()})") from error
