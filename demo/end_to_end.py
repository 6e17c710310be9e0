"""The whole way on made-up tissue: measure, train, export, predict a section never seen, compare with its truth."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from numpy.typing import NDArray

from mclst.demo.comparison import Panel, draw_comparison
from mclst.demo.gene_programs import GENES, PLANTED, PROGRAMMES
from mclst.demo.tissue import MadeUpSection, write_section
from mclst.export.bundling import export_bundle
from mclst.runtime.atomic import WholeFolder, write_whole
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.bundle.manifest import Context, Normalisation, Retrieval, Settings, Tile
from mclst.runtime.expression_map.measured import measured_for
from mclst.runtime.expression_map.reader import open_map
from mclst.runtime.expression_map.writer import usual_spot_diameter
from mclst.runtime.report.page.slide_page import write_slide_page
from mclst.runtime.run.predict import Run, predict
from mclst.runtime.slide.open import open_slide
from mclst.sections.accuracy import pearson_per_gene, score
from mclst.sections.formats.reference import find_sections, match_genes, read_section
from mclst.sections.normalize import NORMALIZATIONS
from mclst.sections.tables.spots import read_spots
from mclst.training.checkpoint import write_checkpoint
from mclst.training.contrastive import Step, TrainedModel, batches_per_epoch, train
from mclst.training.data import TrainingSection, read_training_section
from mclst.training.settings import TrainConfig

Say = Callable[[str], None]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

SUMMARY = "summary.json"
THUMBNAIL_PX = 1400
DRAWN_SPOT = 1.8
"""Diameter of a drawn spot in usual spot diameters; 2 would touch."""
CONTROL = tuple(gene for gene in GENES if gene not in PLANTED)


@dataclass(frozen=True)
class Scale:
    """How much the demo makes and trains; the defaults take about two minutes on two CPU cores.

    size_px, pitch_um: of each slide, as write_section has them. sections: for training; one more is held out.
    epochs: of training. k: neighbours averaged.
    """

    size_px: int = 4000
    pitch_um: float = 90.0
    sections: int = 3
    epochs: int = 24
    batch_size: int = 128
    k: int = 50

    def config(self, seed: int) -> TrainConfig:
        """A ResNet-18 on tiles of 32 px at 2 µm/px, the 64 µm under a spot: as much as a CPU learns in a minute.

        Away from the published settings where so few pairs need it: the temperature keeps un-normalised products of
        256 dimensions from saturating the softmax, the position tables start small, the learning rate is higher
        and falls.
        """
        settings = Settings(
            tile=Tile(size_px=32, mpp=2.0, pad=(244, 243, 245)),
            retrieval=Retrieval(
                k=self.k, rank="cosine", distance="l1", weighting="inverse-square", temperature=1.0
            ),
            context=Context(spots=self.batch_size, sentences="section", positions="array"),
            normalisation=Normalisation(input="spot-wise", expression="spot-wise"),
        )
        return TrainConfig(
            settings,
            encoder="resnet18",
            temperature=16.0,
            position_std=0.1,
            learning_rate=1e-3,
            schedule="cosine",
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=seed,
        )


@dataclass(frozen=True)
class Outcome:
    """What the demo measured.

    correlation: Pearson r per gene of predicted with measured expression, float64 [G], genes as GENES.
    attainable: the same of the planted, noise-free expression with the measured: what a perfect model would reach.
    mse, mae: over all spots and genes. mean_mse: of predicting every gene's mean over the bank, no image needed.
    seconds: wall time by stage.
    """

    run: Run
    bundle: Bundle
    trained: TrainedModel
    correlation: NDArray[np.float64]
    attainable: NDArray[np.float64]
    mse: float
    mae: float
    mean_mse: float
    seconds: dict[str, float] = field(default_factory=dict)

    def mean(self, values: NDArray[np.float64], genes: tuple[str, ...] = PLANTED) -> float:
        """Mean of a per-gene measure over `genes`, those without a value left out."""
        return float(np.nanmean(values[np.isin(GENES, genes)]))

    def as_json(self) -> dict[str, Any]:
        """Plain values: the summary on disk."""
        return {
            "made_up": True,
            "held_out": {"spots": self.run.spots, "unreadable": len(self.run.failed)},
            "pcc_planted": self.mean(self.correlation),
            "pcc_planted_attainable": self.mean(self.attainable),
            "pcc_control": self.mean(self.correlation, CONTROL),
            "mse": self.mse,
            "mae": self.mae,
            "mse_of_bank_mean": self.mean_mse,
            "pcc_per_gene": {
                g: (None if np.isnan(r) else float(r)) for g, r in zip(GENES, self.correlation, strict=True)
            },
            "training": {"steps": self.trained.steps, "losses": list(self.trained.losses)},
            "seconds": {stage: round(value, 2) for stage, value in self.seconds.items()},
        }


def of_programme(name: str) -> tuple[str, ...]:
    """The genes of one of PROGRAMMES."""
    return tuple(gene for gene in GENES if gene.rstrip("0123456789") == name)


def run_demo(
    out: Path, seed: int, *, overwrite: bool, say: Say, progress: Progress, scale: Scale | None = None
) -> Outcome:
    """Make `out` with sections, checkpoint, bundle, map and pictures; whole, or not at all.

    Raises OutputError where `out` cannot be written, and whatever the stages raise.
    """
    scale = scale or Scale()
    seconds: dict[str, float] = {}
    with WholeFolder(out, mark=SUMMARY, overwrite=overwrite) as folder:
        with _stage("make", seconds):
            made = _make(folder.part / "sections", seed, scale, progress)
        *measured, held_out = made
        say(
            f"made {len(made)} sections of {scale.size_px} px, {sum(len(m.spot) for m in made)} spots, {len(GENES)} genes"
        )
        with _stage("train", seconds):
            trained = _train(folder.part, [m.name for m in measured], scale.config(seed), progress)
        say(
            f"trained on {', '.join(m.name for m in measured)}: {trained.steps} steps, "
            f"loss {trained.losses[0]:.2f} → {trained.losses[-1]:.2f}"
        )
        checkpoint = write_checkpoint(folder.part / "model.pt", trained)
        with _stage("export", seconds):
            bundle = export_bundle(checkpoint, folder.part / "bundle")
        say(
            f"exported {bundle.manifest.encoder.name} to ONNX with a bank of {bundle.manifest.bank_rows} spots"
        )
        map_path = folder.part / f"{held_out.name}.h5ad"
        with _stage("predict", seconds), open_slide(held_out.image) as slide:
            spots = read_spots(held_out.spots)
            with progress("tiles", len(spots)) as advance:
                run = predict(bundle, slide, spots, map_path, advance=advance)
        say(f"predicted {run.spots} spots of {held_out.name}, a section the model has not seen")
        with _stage("compare", seconds):
            outcome = _compare(folder.part, held_out, run, bundle, trained, seconds)
        write_whole(folder.part / SUMMARY, (json.dumps(outcome.as_json(), indent=2) + "\n").encode())
        folder.publish()
    return outcome


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _make(folder: Path, seed: int, scale: Scale, progress: Progress) -> list[MadeUpSection]:
    count = scale.sections + 1
    made = []
    with progress("sections", count) as advance:
        for i in range(count):
            name = f"S{i + 1}"
            made.append(
                write_section(folder, name, seed * 100 + i, size_px=scale.size_px, pitch_um=scale.pitch_um)
            )
            advance(1)
    return made


def _train(folder: Path, names: list[str], config: TrainConfig, progress: Progress) -> TrainedModel:
    sources = find_sections(folder / "sections")
    sections: list[TrainingSection] = [
        read_training_section(read_section(sources[name]), GENES, config.settings.tile) for name in names
    ]
    assert config.epochs is not None
    steps = config.epochs * batches_per_epoch(sum(len(s.spot) for s in sections), config.batch_size)
    with progress("training", steps) as advance:

        def watch(step: Step) -> None:
            advance(1)

        return train(sections, config, watch)


def _compare(
    folder: Path,
    held_out: MadeUpSection,
    run: Run,
    bundle: Bundle,
    trained: TrainedModel,
    seconds: dict[str, float],
) -> Outcome:
    """Score the map against the counts measured on the held-out section, and draw the two side by side."""
    normalize = NORMALIZATIONS[bundle.manifest.normalisation.expression]
    section = read_section(find_sections(folder / "sections")[held_out.name])
    found = anndata.read_h5ad(run.map_path)[list(section.spot), list(GENES)]
    predicted = np.asarray(found.to_df().to_numpy(), dtype=np.float32)
    measured = normalize(match_genes(section, GENES))
    planted = normalize(held_out.expected)
    scored = score(predicted, measured)
    bank_mean = bundle.bank.expression.mean(axis=0, dtype=np.float64)
    outcome = Outcome(
        run=run,
        bundle=bundle,
        trained=trained,
        correlation=scored.pcc_per_gene,
        attainable=pearson_per_gene(planted.astype(np.float64), measured.astype(np.float64)),
        mse=scored.mse,
        mae=scored.mae,
        mean_mse=float(np.square(measured - bank_mean).mean()),
        seconds=seconds,
    )
    panels = []
    for name in PROGRAMMES:
        genes = [GENES.index(gene) for gene in of_programme(name) if gene in PLANTED]
        if genes:
            g = max(genes, key=lambda gene: np.nan_to_num(scored.pcc_per_gene[gene], nan=-2.0))
            panels.append(Panel(GENES[g], float(scored.pcc_per_gene[g]), predicted[:, g], measured[:, g]))
    with open_slide(held_out.image) as slide:
        image, image_scale = slide.thumbnail(THUMBNAIL_PX)
    draw_comparison(
        folder / "comparison.png",
        f"{held_out.name}: a made-up section the model has not seen",
        image,
        image_scale,
        held_out.xy_px,
        DRAWN_SPOT * usual_spot_diameter(held_out.xy_px),
        panels,
    )
    if "html" in run.files:
        with open_map(run.map_path) as opened:
            truth = measured_for(opened, folder / "sections", held_out.name)
            write_slide_page(opened, run.files["html"], measured=truth)
    return outcome
