"""Inputs of the encoder benchmarks: bundle, checkpoint, slide, spots, measured section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mclst.benchmarks.contenders.base import U8, ContenderInputs
from mclst.benchmarks.contenders.published_baseline import PublishedNotebook
from mclst.benchmarks.harness.measure import PeerUnavailable
from mclst.benchmarks.harness.undefined import none_if_undefined
from mclst.benchmarks.retrieval.synthetic import F32, Bank
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.errors import CheckpointError, SlideError
from mclst.runtime.slide.detect_format import detect_format
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.array_pitch import slide_resolution
from mclst.runtime.tiling.bounds import check_spots
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.sections.section import Spots

if TYPE_CHECKING:
    from mclst.runtime.expression_map.measured import Pair


@dataclass(frozen=True)
class TorchModel:
    """A checkpoint's network in torch, and its preprocessing: tiles uint8 [b, S, S, 3] → tensor."""

    network: Any
    prepare: Callable[[U8], Any]


def open_torch_model(ckpt: Path, bundle: Bundle) -> TorchModel:
    """Open the checkpoint that `bundle` was made from; CheckpointError where `ckpt` is another one."""
    from mclst.export.inputs.checkpoint import open_checkpoint
    from mclst.export.onnx.graph import preprocess

    checkpoint = open_checkpoint(ckpt)
    source = bundle.manifest.checkpoint
    if checkpoint.sha256 != source.sha256:
        raise CheckpointError(
            f"{ckpt} is not the checkpoint that {bundle.path} was made from ({source.name}); "
            "give that one, or export again"
        )
    encoder = bundle.manifest.spot_encoder
    network = checkpoint.network(heads=None if encoder is None else encoder.heads)
    settings = bundle.manifest.preprocessing
    return TorchModel(network, lambda tiles: preprocess(tiles, settings))


def make_inputs(
    bundle: Bundle, ckpt: Path | None, settings: Sequence[tuple[str, str]], threads: int
) -> ContenderInputs:
    """Collect the graphs of `settings` (provider, precision) and, with `ckpt`, the torch network.

    Raises BundleError if the bundle lacks a precision, CheckpointError if `ckpt` is not the bundle's.
    """
    graphs = {"fp32": bundle.encoder_path}
    graphs |= {precision: bundle.encoder(precision) for _, precision in settings}
    model = None if ckpt is None else open_torch_model(ckpt, bundle)
    return ContenderInputs(
        bundle.path,
        graphs,
        threads,
        bundle.manifest.tile.size_px,
        None if model is None else model.network,
        None if model is None else model.prepare,
    )


def open_notebook(bundle: Bundle, ckpt: Path | None, slide: Path, threads: int) -> PublishedNotebook:
    """Open the published notebook on this bundle's bank; PeerUnavailable where its work would differ."""
    if ckpt is None:
        raise PeerUnavailable("needs the checkpoint; give --ckpt")
    if bundle.manifest.kind != "retrieval":
        raise PeerUnavailable("it is for systems with a bank")
    spec = bundle.retrieval
    if spec.rank != "cosine" or spec.distance not in ("l1", "l2") or spec.weighting != "inverse-square":
        raise PeerUnavailable("the published loop has only cosine rank and d⁻² weights of L1 or L2")
    if bundle.manifest.tile.mpp is not None:
        raise PeerUnavailable("it does not resample tiles, and this bundle has a fixed mpp")
    if detect_format(slide) not in ("jpeg", "png"):
        raise PeerUnavailable("it reads pictures, not slide files")
    model = open_torch_model(ckpt, bundle)
    bank = Bank(bundle.bank.embedding, bundle.bank.expression)
    return PublishedNotebook(model.network, model.prepare, bank, spec, bundle.manifest.tile.size_px, threads)


def check_slide(slide: Path, spots: Spots) -> None:
    """Raise SlideError or SpotsError if a slide cannot be opened or the spots are not on it."""
    with open_slide(slide, lazy=True) as opened:
        check_spots(spots, opened)


def real_tiles(
    bundle: Bundle, slide: Path, spots: Spots, limit: int | None = None, *, complete: bool = False
) -> U8:
    """Tiles at the first `limit` spots for the bundle's encoder, uint8 [n, S, S, 3], in the spots' order.

    Unreadable tiles are skipped. Raises SlideError if none is readable, or, if `complete`, one is not.
    """
    tile = bundle.manifest.tile
    parts = []
    with open_slide(slide) as opened:
        check_spots(spots, opened)
        mpp = slide_resolution(opened, spots, None).mpp
        shape = TileShape(tile.size_px, tile.mpp, tile.pad)
        for batch in Tiles(opened, spots.xy_px[:limit], shape, batch_size=64, workers=2, slide_mpp=mpp):
            if complete and batch.failed:
                raise SlideError(f"{slide}: {batch.failed[0][1]}; give a slide whose tiles are all readable")
            if len(batch.rows):
                parts.append((batch.rows, batch.tiles.copy()))
    if not parts:
        raise SlideError(f"{slide}: no tile at the spots is readable; give another slide")
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    return np.ascontiguousarray(np.concatenate([pixels for _, pixels in parts])[order])


def expression_difference(first: F32, other: F32) -> dict[str, Any]:
    """Difference from the first's expression [n, G], at spots whose tile both could read."""
    from mclst.export.parity.compare import compare_expression

    both = np.isfinite(first).all(axis=1) & np.isfinite(other).all(axis=1)
    return {"spots": int(both.sum()), **compare_expression(first[both], other[both])}


def score_against_truth(
    bundle: Bundle,
    slide: Path,
    spots: Spots,
    expression: Mapping[str, F32],
    truth: Path,
    section: str | None,
) -> dict[str, dict[str, float | None]]:
    """Score expressions against a measured section.

    Parameters
    ----------
    expression : mapping of str to ndarray, shape (n, G)
        At `spots`, by contender.
    truth : Path
        Measured sections.
    section : str, optional
        The slide's section; by default found by the slide's name.

    Returns
    -------
    dict
        By contender: spots, pcc_acg, pcc_heg, mse, mae; undefined scores are None.
    """
    from mclst.sections.accuracy import score

    pairs = pair_expressions(bundle, slide, spots, expression, truth, section)
    scores: dict[str, dict[str, float | None]] = {}
    for name, pair in pairs.items():
        result = score(pair.predicted, pair.truth)
        measures = {m: float(getattr(result, m)) for m in ("pcc_acg", "pcc_heg", "mse", "mae")}
        scores[name] = {"spots": len(pair.spot), **none_if_undefined(measures)}
    return scores


def pair_expressions(
    bundle: Bundle,
    slide: Path,
    spots: Spots,
    expression: Mapping[str, F32],
    truth: Path,
    section: str | None,
) -> dict[str, Pair]:
    """Match expressions [n, G] at `spots` with a measured section; see `score_against_truth`."""
    from mclst.runtime.expression_map.measured import Prediction, choose_section, pair_with_truth

    prediction = Prediction(
        path=slide,
        spot=spots.id.astype(np.str_),
        genes=np.asarray(bundle.genes, np.str_),
        expression=np.empty(0),
        xy_px=spots.xy_px,
        slide=(slide.stem,),
        normalization=bundle.manifest.normalization.expression,
    )
    source = choose_section(prediction, truth, section)
    return {
        name: pair_with_truth(replace(prediction, expression=values.astype(np.float64)), source)
        for name, values in expression.items()
    }
