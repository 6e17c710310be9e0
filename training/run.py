"""Run a training: resume, epochs, validation, checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mclst.sections.accuracy import Score
from mclst.training.checkpoint import write_checkpoint, write_published_state
from mclst.training.contrastive import Network, TrainedModel, Training
from mclst.training.data import TrainingSection
from mclst.training.pretrained_weights import StartingWeights
from mclst.training.settings import TrainConfig
from mclst.training.training_state import delete_state, resume_training, write_state
from mclst.training.validation import check_neighbors, validate

Say = Callable[[str], None]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class TrainingResult:
    """Result of `run_training`.

    resumed_after: epochs done by an earlier, interrupted run.
    validation: (epoch, scores of the validation sections).
    chance: loss of an untrained network, ln of the pairs in a batch.
    """

    checkpoint: Path
    published: Path | None
    trained: TrainedModel
    resumed_after: int
    validation: tuple[tuple[int, tuple[Score, ...]], ...]
    chance: float


def run_training(
    sections: Sequence[TrainingSection],
    config: TrainConfig,
    out: Path,
    *,
    held_out: Sequence[TrainingSection] = (),
    validate_every: int = 1,
    init: Path | None = None,
    weights: Path | None = None,
    published: Path | None = None,
    restart: bool = False,
    say: Say = lambda text: None,
    progress: Progress = lambda title, total: nullcontext(lambda n: None),
) -> TrainingResult:
    """Train on `sections` and write the checkpoint `out`, resuming an interrupted run of the same `out`.

    Parameters
    ----------
    sections : sequence of TrainingSection
    config : TrainConfig
    out : Path
        Checkpoint to write; the state between epochs is kept next to it.
    held_out : sequence of TrainingSection
        Scored every `validate_every` epochs and after the last; never trained on.
    init : Path, optional
        File of initial weights.
    weights : Path, optional
        File of the image encoder's weights, read by its recipe.
    published : Path, optional
        Also write the published code's state dict here.
    restart : bool
        Discard an interrupted run.

    Raises
    ------
    InputError, ReferenceDataError, CheckpointError, OutputError
    """
    spots = sum(len(section.spot) for section in sections)
    check_neighbors(config.settings, spots)
    loaded: list[str] = []

    def initialize(network: Network) -> None:
        loaded.append(StartingWeights(config.encoder, config.recipe, init, weights).load(network))

    training = Training(sections, config, initialize)
    if loaded[0]:
        say(f"starting from {loaded[0]}")
    if restart:
        delete_state(out)
    extra: dict[str, Any] = {"init": None if init is None else str(init)}
    if weights is not None:
        extra["weights"] = str(weights)
    resume_training(out, training, extra)
    resumed_after = len(training.losses)
    if resumed_after:
        say(f"resuming after epoch {resumed_after}, {training.seconds:,.0f} s")
    chance = math.log(spots / training.steps_per_epoch)
    scores: list[tuple[int, tuple[Score, ...]]] = []
    epochs = config.epochs
    total = 0 if epochs is None else epochs * training.steps_per_epoch
    with progress("steps", total) as advance:
        advance(training.steps)
        while not training.finished:
            started = time.monotonic()
            loss = training.run_epoch(lambda step: advance(1))
            done = len(training.losses)
            line = (
                f"epoch {done}"
                + (f"/{epochs}" if epochs else "")
                + f"  loss {loss:.4f} (chance {chance:.2f})"
            )
            write_state(out, training, extra)
            if held_out and (training.finished or done % validate_every == 0):
                scores.append((done, tuple(validate(training, held_out))))
                line += "".join(
                    f"  {section.name}: PCC {score.pcc_acg:.4f} / {score.pcc_heg:.4f}, MSE {score.mse:.4f}"
                    for section, score in zip(held_out, scores[-1][1], strict=True)
                )
            say(f"{line}  {time.monotonic() - started:.1f} s")
    trained = training.finish()
    write_checkpoint(out, trained)
    if published is not None:
        write_published_state(published, trained)
    delete_state(out)
    return TrainingResult(out, published, trained, resumed_after, tuple(scores), chance)
