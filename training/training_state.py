"""State of an interrupted training run, written next to the output after every epoch."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mclst.models.recipes.weights_file import check_archive
from mclst.runtime.errors import CheckpointError, InputError
from mclst.training.checkpoint import save_atomically
from mclst.training.contrastive import Training
from mclst.training.data import TrainingSection
from mclst.training.section_digest import sections_sha256
from mclst.training.settings import TrainConfig

FORMAT = "mclst-training/1"
OTHER_CONTENT = (LookupError, TypeError, ValueError, AttributeError)
"""What a file or state of other content raises."""
DAMAGED = (*OTHER_CONTENT, RuntimeError, EOFError, OSError, CheckpointError, pickle.UnpicklingError)
RENAMED_KEYS = {"optimiser": "optimizer", "colour_jitter": "color_jitter"}
"""Keys of runs written by earlier versions."""


def state_path(out: Path) -> Path:
    """Path of the state of a run that writes `out`: `model.pt.training`."""
    return out.with_name(out.name + ".training")


def write_state(out: Path, training: Training, extra: Mapping[str, Any]) -> None:
    """Save the run; `extra` holds further settings it depends on (plain values). Raises OutputError."""
    run = describe_run(training.config, training.sections, extra, training.data_sha256)
    save_atomically(state_path(out), {"format": FORMAT, "run": run, "state": training.state()})


def resume_training(out: Path, training: Training, extra: Mapping[str, Any]) -> bool:
    """Resume the interrupted run that writes `out`; False if there is none.

    Raises InputError if the state is damaged or of a run with other sections or settings.
    """
    path = state_path(out)
    if not path.exists():
        return False
    refusal = f"{path} is not the state of an interrupted run; delete it or add --restart"
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        saved, state = dict(upgrade_keys(content["run"])), content["state"]
        format_ok = content["format"] == FORMAT
    except DAMAGED as error:
        raise InputError(refusal) from error
    run = describe_run(training.config, training.sections, extra, training.data_sha256)
    different = sorted(key for key in run.keys() | saved.keys() if run.get(key) != saved.get(key))
    if different or not format_ok:
        key = different[0] if different else "format"
        raise InputError(
            f"{path} is of a run with another {key} ({_short(saved.get(key))}, now {_short(run.get(key))}); "
            "use the same options to resume, or add --restart to start over"
        )
    try:
        training.resume(state)
    except OTHER_CONTENT as error:
        raise InputError(refusal) from error
    return True


def delete_state(out: Path) -> None:
    """Delete the state, if any."""
    state_path(out).unlink(missing_ok=True)


def describe_run(
    config: TrainConfig, sections: Sequence[TrainingSection], extra: Mapping[str, Any], data: str = ""
) -> dict[str, Any]:
    """Everything that must be equal to resume a run, as plain values; the device may change.

    data: `sections_sha256` of the sections, if it is known already.
    """
    plain = {**config.record(), **config.settings.model_dump(mode="json"), **extra}
    del plain["device"]
    plain["sections"] = [section.name for section in sections]
    plain["data"] = data or sections_sha256(sections)
    if plain["normalization"].pop("log_share_of"):  # no other unit depends on it
        plain["measured_genes"] = [section.totals and section.totals.measured_genes for section in sections]
    # A round trip through JSON turns tuples into lists, so that runs compare equal.
    return dict(json.loads(json.dumps(plain)))


def upgrade_keys(value: Any) -> Any:
    """Rename keys of earlier versions in a description of a run."""
    if not isinstance(value, dict):
        return value
    return {RENAMED_KEYS.get(key, key): upgrade_keys(item) for key, item in value.items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"
