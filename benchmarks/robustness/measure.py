"""Expression of perturbed tiles beside that of the tiles as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.contenders.inputs import pair_expressions, score_against_truth
from mclst.benchmarks.harness.undefined import none_if_undefined
from mclst.benchmarks.robustness.perturb import PERTURBATIONS, center, context_px
from mclst.benchmarks.robustness.trust import judge_tiles, name_colors, place_of
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import InputError, SlideError
from mclst.runtime.inference.readout import open_readout
from mclst.runtime.providers.opening import EncoderRequest, open_encoder
from mclst.runtime.run.options import RunOptions
from mclst.runtime.run.trust import RunTrust
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.array_pitch import slide_resolution
from mclst.runtime.tiling.bounds import check_spots
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.runtime.trust.measures import MeasuredResult
from mclst.runtime.trust.places import read_overview
from mclst.sections.accuracy import pearson_per_gene
from mclst.sections.section import Spots

BATCH = 16
AS_IS = "as it is"

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


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
        µm per level-0 px; by default the slide's, else the spot array's.
    provider : str
        What runs the encoder.
    advance : callable
        Called with the number of tiles just encoded.

    Returns
    -------
    dict
        `tiles`, `provider`, and `perturbations` by name, "as it is" first: see `compare_expression`, `scores`
        with a truth, and with a truth and a calibrated bundle `trust`: see `judge_tiles`, and `colors`, how
        they differ from the reference's.

    Raises
    ------
    InputError
        If the model averages over neighbors: their tiles would have to change too.
    SlideError
        If a tile cannot be read.
    """
    if bundle.manifest.neighborhood is not None:
        raise InputError(f"{bundle.path} averages over neighboring spots; give a bundle without --context")
    request = EncoderRequest(bundle.path, bundle.encoder("fp32"), "fp32", BATCH)
    session, _ = open_encoder(provider, request)
    features, places, glass = _encode(bundle, slide, spots, session, mpp, advance)
    readout = open_readout(bundle, None, spots, session.provider)
    rows = np.arange(len(spots))
    predicted = {name: readout.predict_expression(rows, own) for name, own in features.items()}
    expression = {name: own.expression for name, own in predicted.items()}
    scores = {} if truth is None else score_against_truth(bundle, slide, spots, expression, truth, section)
    results: dict[str, Any] = {}
    for name, own in expression.items():
        results[name] = compare_expression(own, expression[AS_IS], bundle.genes)
        if name in scores:
            results[name]["scores"] = scores[name]
    calibration = bundle.calibration
    if truth is not None and calibration is not None:
        trust = RunTrust(RunOptions(), calibration, None, bundle.genes)
        row_of = {spot: row for row, spot in enumerate(spots.id.astype(np.str_).tolist())}
        for name, pair in pair_expressions(bundle, slide, spots, expression, truth, section).items():
            measured = trust.measure(features[name], predicted[name])
            assert isinstance(measured, MeasuredResult)
            paired = np.array([row_of[spot] for spot in pair.spot.tolist()])
            results[name]["trust"] = {
                **judge_tiles(calibration, measured, paired, pair),
                "colors": name_colors(calibration, places[name], glass, PERTURBATIONS.get(name)),
            }
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
) -> tuple[Mapping[str, F32], Mapping[str, U8], U8]:
    """What the encoder gives [n, D] and middles of the tiles under each perturbation; the slide's overview.

    The context of a tile is read once.
    """
    tile = bundle.manifest.tile
    features = {
        name: np.empty((len(spots), bundle.manifest.graph_dim), np.float32)
        for name in (AS_IS, *PERTURBATIONS)
    }
    places: dict[str, list[U8]] = {name: [] for name in features}
    with open_slide(slide) as opened:
        glass = read_overview(opened)
        check_spots(spots, opened)
        side = context_px(tile.size_px)
        shape = TileShape(side, tile.mpp, tile.pad)
        mpp = slide_resolution(opened, spots, mpp).mpp
        for batch in Tiles(opened, spots.xy_px, shape, batch_size=BATCH, workers=2, slide_mpp=mpp):
            if batch.failed:
                raise SlideError(f"{slide}: {batch.failed[0][1]}; give a slide whose tiles are all readable")
            contexts = batch.tiles
            as_is = np.stack([center(context, tile.size_px) for context in contexts])
            features[AS_IS][batch.rows] = session.encode(as_is)
            places[AS_IS].append(place_of(as_is))
            for name, perturb in PERTURBATIONS.items():
                tiles = np.stack([perturb(context, tile.size_px) for context in contexts])
                features[name][batch.rows] = session.encode(tiles)
                places[name].append(place_of(tiles))
            advance(len(batch.rows))
    return features, {name: np.concatenate(parts) for name, parts in places.items()}, glass


def _summary(how: Callable[[NDArray[np.float64]], Any], values: NDArray[np.float64]) -> float:
    defined = values[np.isfinite(values)]
    return float(how(defined)) if len(defined) else float("nan")
