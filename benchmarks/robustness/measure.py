"""Expression of perturbed tiles beside that of the tiles as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.contenders.inputs import score_against_truth
from mclst.benchmarks.harness.undefined import none_if_undefined
from mclst.benchmarks.robustness.perturb import PERTURBATIONS, center, context_px
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import SlideError
from mclst.runtime.inference.providers import EncoderRequest, open_encoder
from mclst.runtime.inference.readout import open_readout
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.bounds import check_spots
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.sections.accuracy import pearson_per_gene
from mclst.sections.section import Spots

BATCH = 16
AS_IS = "as it is"

F32 = NDArray[np.float32]


def measure(
    bundle: Bundle,
    slide: Path,
    spots: Spots,
    *,
    truth: Path | None = None,
    section: str | None = None,
    mpp: float | None = None,
    provider: str = "auto",
    advance: Callable[[int], object] = lambda n: None,
) -> dict[str, Any]:
    """Predict the spots from perturbed tiles.

    Parameters
    ----------
    bundle : Bundle
    slide : Path
    spots : Spots
    truth, section : optional
        Measured sections to score against; see `score_against_truth`.
    mpp : float, optional
        µm per level-0 px, if the slide does not say.
    provider : str
        What runs the encoder.
    advance : callable
        Called with the number of tiles just encoded.

    Returns
    -------
    dict
        `tiles`, `provider`, and `perturbations` by name, "as it is" first: see `compare_expression`, and
        `scores` with a truth.

    Raises
    ------
    SlideError
        If a tile cannot be read.
    """
    request = EncoderRequest(bundle.path, bundle.encoder("fp32"), "fp32", BATCH)
    session, _ = open_encoder(provider, request)
    features = _encode(bundle, slide, spots, session, mpp, advance)
    readout = open_readout(bundle, None, spots, session.provider)
    rows = np.arange(len(spots))
    expression = {name: readout.predict_expression(rows, own).expression for name, own in features.items()}
    scores = {} if truth is None else score_against_truth(bundle, slide, spots, expression, truth, section)
    results: dict[str, Any] = {}
    for name, own in expression.items():
        results[name] = compare_expression(own, expression[AS_IS], bundle.genes)
        if name in scores:
            results[name]["scores"] = scores[name]
    return {"tiles": len(spots), "provider": session.provider, "perturbations": results}


def compare_expression(own: F32, reference: F32, genes: list[str]) -> dict[str, Any]:
    """Compare expression float32 [n, G] with that of the tiles as they are.

    Returns
    -------
    dict
        `r`: mean over the genes of Pearson's r between the two, over the spots. `change`: median over the
        genes of the root mean square change, in standard deviations of the gene over the spots. `shift`:
        median over the genes of the change of the gene's mean, in the same unit. `genes`: r and change of
        each; None where the gene is constant.
    """
    a, b = own.astype(np.float64), reference.astype(np.float64)
    r = pearson_per_gene(a, b)
    deviation = b.std(axis=0)
    varies = (b != b[:1]).any(axis=0)
    unit = np.where(varies, deviation, np.nan)
    change = np.sqrt(np.square(a - b).mean(axis=0)) / unit
    shift = np.abs(a.mean(axis=0) - b.mean(axis=0)) / unit
    per_gene = {
        gene: {"r": own_r, "change": own_change}
        for gene, own_r, own_change in zip(genes, r.tolist(), change.tolist(), strict=True)
    }
    summary = {
        "r": _summary(np.mean, r),
        "change": _summary(np.median, change),
        "shift": _summary(np.median, shift),
    }
    return dict(none_if_undefined({**summary, "genes": per_gene}))


def _encode(
    bundle: Bundle,
    slide: Path,
    spots: Spots,
    session: Session,
    mpp: float | None,
    advance: Callable[[int], object],
) -> Mapping[str, F32]:
    """Features [n, D] of the spots under each perturbation; the context is read once."""
    tile = bundle.manifest.tile
    features = {
        name: np.empty((len(spots), bundle.manifest.encoder.embedding_dim), np.float32)
        for name in (AS_IS, *PERTURBATIONS)
    }
    with open_slide(slide) as opened:
        check_spots(spots, opened)
        side = context_px(tile.size_px)
        shape = TileShape(side, tile.mpp, tile.pad)
        for batch in Tiles(opened, spots.xy_px, shape, batch_size=BATCH, workers=2, slide_mpp=mpp):
            if batch.failed:
                raise SlideError(f"{slide}: {batch.failed[0][1]}; give a slide whose tiles are all readable")
            contexts = batch.tiles
            as_is = np.stack([center(context, tile.size_px) for context in contexts])
            features[AS_IS][batch.rows] = session.encode(as_is)
            for name, perturb in PERTURBATIONS.items():
                tiles = np.stack([perturb(context, tile.size_px) for context in contexts])
                features[name][batch.rows] = session.encode(tiles)
            advance(len(batch.rows))
    return features


def _summary(how: Callable[[NDArray[np.float64]], Any], values: NDArray[np.float64]) -> float:
    defined = values[np.isfinite(values)]
    return float(how(defined)) if len(defined) else float("nan")
