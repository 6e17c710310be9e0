"""A run that was stopped: its state beside the output, written whole after every epoch, and taken up again."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mclst.runtime.errors import InputError
from mclst.training.checkpoint import save_whole
from mclst.training.contrastive import Training
from mclst.training.data import TrainingSection
from mclst.training.settings import TrainConfig

FORMAT = "mclst-training/1"


def state_path(out: Path) -> Path:
    """Where the state of a run that writes `out` is kept: `model.pt.training`."""
    return out.with_name(out.name + ".training")


def write_state(out: Path, training: Training, told: Mapping[str, Any]) -> None:
    """Put the run away; `told` is what else shaped it (plain values). Raises OutputError."""
    path = state_path(out)
    content = {
        "format": FORMAT,
        "run": describe(training.config, training.sections, told),
        "state": training.state(),
    }
    save_whole(path, content)


def take_up(out: Path, training: Training, told: Mapping[str, Any]) -> bool:
    """Go on where a run that writes `out` was stopped; False where there is none.

    Raises InputError where the state is damaged or of a run with other sections or settings.
    """
    path = state_path(out)
    if not path.exists():
        return False
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found, state = content["run"], content["state"]
        known = content["format"] == FORMAT
    except (RuntimeError, EOFError, OSError, LookupError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is not the state of a stopped run; delete it or add --restart") from error
    own = describe(training.config, training.sections, told)
    other = sorted(key for key in own.keys() | found.keys() if own.get(key) != found.get(key))
    if other or not known:
        what = other[0] if other else "format"
        raise InputError(
            f"{path} is of a run with another {what} ({_short(found.get(what))}, now {_short(own.get(what))}); "
            "give the same again to go on, or add --restart to begin anew"
        )
    training.resume(state)
    return True


def forget(out: Path) -> None:
    """Remove the state, where there is one."""
    state_path(out).unlink(missing_ok=True)


def describe(
    config: TrainConfig, sections: Sequence[TrainingSection], told: Mapping[str, Any]
) -> dict[str, Any]:
    """What must be the same for a run to go on, as plain values; the device may change.

    told: what else shaped the run.
    """
    plain = {**config.record(), **config.settings.model_dump(mode="json"), **told}
    del plain["device"]
    plain["sections"] = [section.name for section in sections]
    plain["data"] = _digest(sections)
    # As JSON has it: tuples and lists are one.
    return dict(json.loads(json.dumps(plain)))


def _digest(sections: Sequence[TrainingSection]) -> str:
    digest = hashlib.sha256("\n".join(sections[0].genes).encode())
    for section in sections:
        digest.update("\n".join(section.spot).encode())
        for array in (section.tiles, section.counts, section.array_xy):
            digest.update(np.ascontiguousarray(array).data)
        for known in (section.xy_px, section.total):
            digest.update(b"-" if known is None else np.ascontiguousarray(known).data)
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"
