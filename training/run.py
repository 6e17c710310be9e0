"""A training run from beginning to end: epochs, validation, the state of a stopped run, the checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mclst.runtime.errors import ReferenceDataError
from mclst.sections.accuracy import Score
from mclst.training.checkpoint import write_checkpoint, write_published_state
from mclst.training.contrastive import Step, TrainedModel, Training
from mclst.training.data import TrainingSection
from mclst.training.pretrained_weights import load_weights
from mclst.training.settings import TrainConfig
from mclst.training.training_state import forget, take_up, write_state
from mclst.training.validation import validate

Say = Callable[[str], None]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    started_at: epochs that an earlier, stopped run had done. validation: (epoch, scores of the validation sections).
    chance: the loss of a network that knows nothing, ln of the pairs in a batch.
    """

    checkpoint: Path
    published: Path | None
    trained: TrainedModel
    started_at: int
    validation: tuple[tuple[int, tuple[Score, ...]], ...]
    chance: float


def run(
    sections: Sequence[TrainingSection],
    config: TrainConfig,
    out: Path,
    *,
    held_out: Sequence[TrainingSection] = (),
    validate_every: int = 1,
    init: Path | None = None,
    published: Path | None = None,
    restart: bool = False,
    say: Say = lambda text: None,
    progress: Progress = lambda title, total: nullcontext(lambda n: None),
) -> Outcome:
    """Train on `sections` and write `out`; go on where an earlier run that writes `out` was stopped.

    held_out: scored every `validate_every` epochs and after the last; training takes no notice of them. init: file of
    starting weights. published: also write the plain state dict there. restart: forget a stopped run.
    Raises InputError, ReferenceDataError, CheckpointError and OutputError.
    """
    spots = sum(len(section.spot) for section in sections)
    if config.settings.retrieval.k > spots:
        raise ReferenceDataError(
            f"k is {config.settings.retrieval.k} and the training sections have {spots} spots together; "
            f"give --k of at most {spots}, or more sections"
        )
    loaded: list[str] = []
    training = Training(
        sections,
        config,
        None if init is None else lambda net: loaded.append(load_weights(net, init, config.encoder)),
    )
    if loaded:
        say(f"starting from {loaded[0]}")
    if restart:
        forget(out)
    told: dict[str, Any] = {"init": None if init is None else str(init)}
    take_up(out, training, told)
    started_at = len(training.losses)
    if started_at:
        say(f"going on after epoch {started_at}, {training.seconds:,.0f} s")
    chance = math.log(spots / training.steps_per_epoch)
    scores: list[tuple[int, tuple[Score, ...]]] = []
    epochs = config.epochs
    total = 0 if epochs is None else epochs * training.steps_per_epoch
    with progress("steps", total) as advance:
        advance(training.steps)

        def watch(step: Step) -> None:
            advance(1)

        while not training.finished:
            started = time.monotonic()
            loss = training.epoch(watch)
            done = len(training.losses)
            line = (
                f"epoch {done}"
                + (f"/{epochs}" if epochs else "")
                + f"  loss {loss:.4f} (chance {chance:.2f})"
            )
            write_state(out, training, told)
            if held_out and (training.finished or done % validate_every == 0):
                scores.append((done, tuple(validate(training, held_out))))
                line += "".join(
                    _told(s.name, found) for s, found in zip(held_out, scores[-1][1], strict=True)
                )
            say(f"{line}  {time.monotonic() - started:.1f} s")
    trained = training.trained()
    write_checkpoint(out, trained)
    if published is not None:
        write_published_state(published, trained)
    forget(out)
    return Outcome(out, published, trained, started_at, tuple(scores), chance)


def _told(name: str, found: Score) -> str:
    return f"  {name}: PCC {found.pcc_acg:.4f} / {found.pcc_heg:.4f}, MSE {found.mse:.4f}"
