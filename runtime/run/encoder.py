"""What runs a run's encoder: what a stopped run had, else what the model chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mclst.runtime.choices import FASTEST_FIRST, PRECISIONS
from mclst.runtime.errors import BundleError, ResourceError
from mclst.runtime.inference.model import Model
from mclst.runtime.providers.choice import EncoderChoice
from mclst.runtime.run.context import RunLog
from mclst.runtime.run.options import RunOptions
from mclst.runtime.run.provenance import BATCH, BUNDLE, LANES, PRECISION, PROVIDER


def choose_encoder(
    model: Model, options: RunOptions, stopped: Mapping[str, str] | None, log: RunLog, tiles: int
) -> tuple[RunOptions, EncoderChoice]:
    """Replace an "auto" by what will run.

    Parameters
    ----------
    model : Model
    options : RunOptions
    stopped : mapping, optional
        The fingerprint of a stopped run that this one is to resume; its choice is kept.
    log : RunLog
    tiles : int
        How many the run encodes.

    Returns
    -------
    options : RunOptions
        With the provider ("auto" for the first that opens) and the precision.
    choice : EncoderChoice

    Raises
    ------
    BundleError
        If the bundle has no encoder in the precision asked for.
    """
    with log.clock.stage("choose"):
        choice = _stopped_choice(model, options, stopped or {}, log) or model.choose_encoder(
            options.choice_request(), log.notify, run_tiles=tiles
        )
        if (stopped or {}).get(BUNDLE) == model.sha256:
            choice = _with_stopped_lanes(choice, stopped or {})
    return replace(options, provider=choice.provider, precision=choice.precision), choice


def stopped_batch(model: Model, options: RunOptions, stopped: Mapping[str, str] | None) -> int | None:
    """Return the batch of a stopped run that this one resumes; None if there is none, or a larger one."""
    before = (stopped or {}).get(BATCH, "")
    same = (stopped or {}).get(BUNDLE) == model.sha256 and before.isdigit()
    return int(before) if same and 0 < int(before) <= options.batch_size else None


def _stopped_choice(
    model: Model, options: RunOptions, stopped: Mapping[str, str], log: RunLog
) -> EncoderChoice | None:
    provider = stopped.get(PROVIDER, "").partition(",")[0]
    precision = stopped.get(PRECISION, "")
    if (
        "auto" not in (options.provider, options.precision)
        or options.precision == "fp32"
        or stopped.get(BUNDLE) != model.sha256
        or provider not in FASTEST_FIRST
        or precision not in PRECISIONS
        or options.provider not in ("auto", provider)
        or options.precision not in ("auto", precision)
    ):
        return None
    choice = _with_stopped_lanes(EncoderChoice(provider, precision), stopped)
    try:
        model.encoder(choice.name, options.batch_size, build=options.build, notify=log.note)
    except (ResourceError, BundleError):
        return None
    return choice


def _with_stopped_lanes(choice: EncoderChoice, stopped: Mapping[str, str]) -> EncoderChoice:
    """Take a stopped run's lanes where the rest is the same, however it came to be chosen."""
    provider = stopped.get(PROVIDER, "").partition(",")[0]
    if (choice.provider, choice.precision) != (provider, stopped.get(PRECISION)):
        return choice
    lanes = stopped.get(LANES, "")
    return replace(choice, lanes=int(lanes) if lanes.isdecimal() and int(lanes) else None)
