"""Settings of a bundle: published defaults, a checkpoint's own, and overrides."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from mclst.export.inputs.checkpoint import Checkpoint
from mclst.runtime.bundle.manifest import Normalization, Settings
from mclst.runtime.errors import CheckpointError

Overrides = dict[str, Any]
"""Fields of `Settings`, nested as there; absent fields keep their default."""


def resolve_settings(checkpoint: Checkpoint, overrides: Overrides) -> Settings:
    """Apply, in this order, the system's defaults, the checkpoint's own settings and `overrides`.

    Raises
    ------
    CheckpointError
        If an override does not apply to the system, a required setting is missing, a value is out of range,
        or the checkpoint's units are those of an earlier version.
    """
    system = checkpoint.system
    stored = checkpoint.metadata.get("config", {})
    _check_supported(checkpoint, overrides)
    for required in system.required:
        part, name = required.split(".")
        if name not in overrides.get(part, {}) and name not in stored.get(part, {}):
            raise CheckpointError(
                f"{checkpoint.path} is {system.title}, whose checkpoints do not hold the {name} it was "
                f"trained with; give it with --{name}"
            )
    try:
        # Only fields that the checkpoint sets may replace the system's defaults.
        stored_settings = Settings.model_validate_json(json.dumps(stored))
        own = stored_settings.model_dump_json(exclude_unset=True)
        merged = Settings().model_dump(mode="json")
        for layer in (system.settings, json.loads(own), overrides):
            for part, fields in layer.items():
                merged[part] = {**(merged[part] or {}), **fields} if isinstance(fields, dict) else fields
        units = merged["normalization"]
        merged["normalization"] = Normalization.of(units["input"], units["expression"]).model_dump()
        settings = Settings.model_validate_json(json.dumps(merged))
    except (ValidationError, TypeError, KeyError) as error:
        name, reason = "config", str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            name, reason = ".".join(str(part) for part in first["loc"]), first["msg"].lower()
        raise CheckpointError(f"{checkpoint.path}: setting {name}: {reason}; correct the option") from error
    if stored_settings.normalization.of_earlier_version:
        raise CheckpointError(
            f"{checkpoint.path}: the log-share of an earlier version counted the model's genes alone; "
            f"{'fit' if 'fit' in checkpoint.metadata else 'train'} it again"
        )
    if system.kind == "retrieval":
        try:
            settings.retrieval.spec()
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from error
    return settings


def _check_supported(checkpoint: Checkpoint, overrides: Overrides) -> None:
    system = checkpoint.system
    for part, fields in overrides.items():
        for name in fields if isinstance(fields, dict) else [""]:
            if part in system.fixed:
                supported = False
            elif part in ("heads", "context", "graph"):
                supported = part in system.supports
            elif name == "symmetries":
                supported = name in system.supports
            else:
                supported = system.kind == "retrieval" or (
                    part != "retrieval" and (part, name) != ("normalization", "input")
                )
            if not supported:
                setting = f"{part}.{name}" if name else part
                raise CheckpointError(
                    f"{checkpoint.path} is {system.title}, to which the setting {setting} does not apply; "
                    "leave the option out"
                )
