"""End-to-end run on synthetic tissue: train, export, predict a held-out section, compare with its truth."""

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
from mclst.demo.gene_programs import GENES, PLANTED, PROGRAMS
from mclst.demo.tissue import SyntheticSection, write_section
from mclst.export.bundling import export_bundle
from mclst.runtime.atomic import AtomicFolder, write_atomically
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.bundle.manifest import Context, Normalization, Retrieval, Settings, Tile
from mclst.runtime.expression_map.measured import measured_expression
from mclst.runtime.expression_map.reader import open_map
from mclst.runtime.expression_map.writer import estimate_spot_diameter
from mclst.runtime.report.page.slide_page import write_slide_page
from mclst.runtime.run.predict import Run, predict
from mclst.runtime.slide.open import open_slide
from mclst.sections.accuracy import pearson_per_gene, score
from mclst.sections.formats.reference import find_sections, match_genes, read_section
from mclst.sections.normalize import NORMALIZATIONS
from mclst.sections.tables.spots import read_spots
from mclst.training.checkpoint import write_checkpoint
from mclst.training.contrastive import TrainedModel, batches_per_epoch, train
from mclst.training.data import TrainingSection, read_training_section
from mclst.training.settings import TrainConfig

Say = Callable[[str], None]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

SUMMARY = "summary.json"
THUMBNAIL_PX = 1400
DRAWN_SPOT = 1.8
"""Diameter of a drawn spot in estimated spot diameters; at 2, spots touch."""
CONTROL = tuple(gene for gene in GENES if gene not in PLANTED)


@dataclass(frozen=True)
class DemoScale:
    """Size of the demo; the defaults take a few minutes on two CPU cores.

    size_px, pitch_um: of each slide, see `write_section`. sections: for training; one more is held out.
    """

    size_px: int = 4000
    pitch_um: float = 90.0
    sections: int = 3
    epochs: int = 24
    batch_size: int = 128
    k: int = 50

    def config(self, seed: int) -> TrainConfig:
        """Configure a ResNet-18 on tiles of 32 px at 2 µm/px, the 64 µm under a spot."""
        # Few pairs need other values than the published ones: the temperature keeps unnormalized products of
        # 256 dimensions from saturating the softmax, positions start small, the learning rate starts high.
        settings = Settings(
            tile=Tile(size_px=32, mpp=2.0, pad=(244, 243, 245)),
            retrieval=Retrieval(
                k=self.k, rank="cosine", distance="l1", weighting="inverse-square", temperature=1.0
            ),
            context=Context(spots=self.batch_size, sentences="section", positions="array"),
            normalization=Normalization(input="spot-wise", expression="spot-wise"),
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
class DemoResult:
    """Result of the demo.

    correlation: Pearson r per gene of predicted and measured expression, float64 [G], genes as GENES.
    attainable: Pearson r of the planted, noise-free expression and the measured: the limit of a perfect
    model.
    mse, mae: over all spots and genes. mean_mse: MSE of predicting each gene's mean over the bank, without
    image.
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
        """Mean of a per-gene measure over `genes`, ignoring NaN."""
        return float(np.nanmean(values[np.isin(GENES, genes)]))

    def as_json(self) -> dict[str, Any]:
        """Plain values for the summary file."""
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


def genes_of_program(name: str) -> tuple[str, ...]:
    """Genes of one of PROGRAMS."""
    return tuple(gene for gene in GENES if gene.rstrip("0123456789") == name)


def run_demo(
    out: Path, seed: int, *, overwrite: bool, say: Say, progress: Progress, scale: DemoScale | None = None
) -> DemoResult:
    """Write `out` with sections, checkpoint, bundle, map and figures, atomically.

    Raises OutputError if `out` cannot be written, and the errors of the stages.
    """
    scale = scale or DemoScale()
    seconds: dict[str, float] = {}
    with AtomicFolder(out, mark=SUMMARY, overwrite=overwrite) as folder:
        with _stage("make", seconds):
            sections = _make(folder.part / "sections", seed, scale, progress)
        *measured, held_out = sections
        say(
            f"made {len(sections)} sections of {scale.size_px} px, {sum(len(m.spot) for m in sections)} "
            f"spots, {len(GENES)} genes"
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
            f"exported {bundle.manifest.encoder.name} to ONNX with a bank of {bundle.manifest.bank_rows} "
            "spots"
        )
        map_path = folder.part / f"{held_out.name}.h5ad"
        with _stage("predict", seconds), open_slide(held_out.image) as slide:
            spots = read_spots(held_out.spots)
            with progress("tiles", len(spots)) as advance:
                run = predict(bundle, slide, spots, map_path, advance=advance)
        say(f"predicted {run.spots} spots of {held_out.name}, a held-out section")
        with _stage("compare", seconds):
            result = _compare(folder.part, held_out, run, bundle, trained, seconds)
        write_atomically(folder.part / SUMMARY, (json.dumps(result.as_json(), indent=2) + "\n").encode())
        folder.publish()
    return result


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _make(folder: Path, seed: int, scale: DemoScale, progress: Progress) -> list[SyntheticSection]:
    count = scale.sections + 1
    sections = []
    with progress("sections", count) as advance:
        for i in range(count):
            name = f"S{i + 1}"
            sections.append(
                write_section(folder, name, seed * 100 + i, size_px=scale.size_px, pitch_um=scale.pitch_um)
            )
            advance(1)
    return sections


def _train(folder: Path, names: list[str], config: TrainConfig, progress: Progress) -> TrainedModel:
    sources = find_sections(folder / "sections")
    sections: list[TrainingSection] = [
        read_training_section(read_section(sources[name]), GENES, config.settings.tile) for name in names
    ]
    assert config.epochs is not None
    steps = config.epochs * batches_per_epoch(sum(len(s.spot) for s in sections), config.batch_size)
    with progress("training", steps) as advance:
        return train(sections, config, lambda step: advance(1))


def _compare(
    folder: Path,
    held_out: SyntheticSection,
    run: Run,
    bundle: Bundle,
    trained: TrainedModel,
    seconds: dict[str, float],
) -> DemoResult:
    """Score the map against the measured counts of the held-out section, and draw both."""
    normalize = NORMALIZATIONS[bundle.manifest.normalization.expression]
    section = read_section(find_sections(folder / "sections")[held_out.name])
    adata = anndata.read_h5ad(run.map_path)[list(section.spot), list(GENES)]
    predicted = np.asarray(adata.to_df().to_numpy(), dtype=np.float32)
    measured = normalize(match_genes(section, GENES))
    planted = normalize(held_out.expected)
    scores = score(predicted, measured)
    bank_mean = bundle.bank.expression.mean(axis=0, dtype=np.float64)
    result = DemoResult(
        run=run,
        bundle=bundle,
        trained=trained,
        correlation=scores.pcc_per_gene,
        attainable=pearson_per_gene(planted.astype(np.float64), measured.astype(np.float64)),
        mse=scores.mse,
        mae=scores.mae,
        mean_mse=float(np.square(measured - bank_mean).mean()),
        seconds=seconds,
    )
    panels = []
    for name in PROGRAMS:
        genes = [GENES.index(gene) for gene in genes_of_program(name) if gene in PLANTED]
        if genes:
            g = max(genes, key=lambda gene: np.nan_to_num(scores.pcc_per_gene[gene], nan=-2.0))
            panels.append(Panel(GENES[g], float(scores.pcc_per_gene[g]), predicted[:, g], measured[:, g]))
    with open_slide(held_out.image) as slide:
        image, image_scale = slide.thumbnail(THUMBNAIL_PX)
    draw_comparison(
        folder / "comparison.png",
        f"{held_out.name}: a synthetic section held out from training",
        image,
        image_scale,
        held_out.xy_px,
        DRAWN_SPOT * estimate_spot_diameter(held_out.xy_px),
        panels,
    )
    if "html" in run.files:
        with open_map(run.map_path) as map_:
            truth = measured_expression(map_, folder / "sections", held_out.name)
            write_slide_page(map_, run.files["html"], measured=truth)
    return result
