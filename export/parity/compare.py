"""Compare the exported graph with its checkpoint; the content of `parity.json`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mclst.export.onnx.graph import preprocess
from mclst.kernels.definition.contract import NoWeights
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.retriever import Retriever
from mclst.runtime.bundle.bank import Bank
from mclst.runtime.bundle.manifest import Retrieval, Settings
from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import ParityError
from mclst.sections.accuracy import pearson_per_gene

NEAREST = 50
"""Neighbors of a second overlap figure: that of k hides more, since k is up to a fifth of a bank."""


@dataclass(frozen=True)
class Tolerance:
    """Limits of a float32 export.

    Parameters
    ----------
    embedding_max_abs : float
        Largest difference as a share of the largest value.
    cosine_min : float
        Cosine of the worst tile.
    overlap_mean : float
        Mean share of the k neighbors in common.
    expression_q999 : float
        99.9 % quantile of the absolute difference.
    expression_pearson : float
        Pearson r over all values.
    """

    embedding_max_abs: float = 1e-3
    cosine_min: float = 0.99999
    overlap_mean: float = 0.98
    expression_q999: float = 1e-3
    expression_pearson: float = 0.99999


@dataclass(frozen=True)
class TileSet:
    """Tiles to compare or calibrate on.

    Parameters
    ----------
    pixels : uint8 [n, S, S, 3]
        RGB.
    source : str
        Origin, for messages.
    rows : int64 [n], optional
        Bank rows of their spots.
    """

    pixels: NDArray[np.uint8]
    source: str
    rows: NDArray[np.int64] | None = None

    def __str__(self) -> str:
        return f"{len(self.pixels)} tiles of {self.source}"


_SYMMETRIES: list[Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = [
    lambda tiles, turns=turns, mirror=mirror: np.rot90(tiles[:, :, ::mirror], turns, (1, 2))  # type: ignore[misc]
    for mirror in (1, -1)
    for turns in range(4)
]


def encode_with_checkpoint(
    network: nn.Module, tiles: NDArray[np.uint8], settings: Settings
) -> NDArray[np.float32]:
    """Encode tiles with the checkpoint's network in torch, float32 [n, D]."""
    # Symmetries are applied in numpy, independently of the graph under test.
    symmetries = _SYMMETRIES[: settings.preprocessing.symmetries]
    parts = []
    with torch.inference_mode():
        for i in range(0, len(tiles), 8):
            encoded = [
                network.encode_tiles(preprocess(turn(tiles[i : i + 8]), settings.preprocessing))  # type: ignore[operator]
                for turn in symmetries
            ]
            parts.append(torch.stack(encoded).double().mean(0).float().numpy())
    return np.concatenate(parts)


def encode_with_export(session: Session, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Encode tiles with the exported graph, float32 [n, D]."""
    # Batches of 1, 3 and the rest: the batch size must not matter.
    parts = [tiles[:1], tiles[1:4], tiles[4:]]
    return np.concatenate([session.encode(part) for part in parts if len(part)])


def compare(
    expected: NDArray[np.float32],
    actual: NDArray[np.float32],
    bank: Bank,
    retrieval: Retrieval,
    rows: NDArray[np.int64] | None = None,
    predictions: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> dict[str, Any]:
    """Compare embeddings [n, D] and the expression retrieved for them, in float64.

    Parameters
    ----------
    expected, actual : float32 [n, D]
        Embeddings from checkpoint and export.
    bank : Bank
    retrieval : Retrieval
    rows : int64 [n], optional
        Bank rows of the tiles' spots. Adds how well each predicts the measured expression; each spot is in
        the bank, which favors both alike.
    predictions : (float32 [n, G], float32 [n, G]), optional
        Expression from checkpoint and export that is added to the retrieved one.

    Returns
    -------
    dict
        Embedding error, top-k overlap and Pearson r per gene. Genes constant over the tiles have no r.
    """
    spec = retrieval.spec()
    expected_result, actual_result = _retrieve(bank, spec, expected, actual)
    if predictions is not None:
        expected_result, actual_result = (
            replace(result, expression=result.expression + prediction)
            for result, prediction in zip((expected_result, actual_result), predictions, strict=True)
        )
    overlap = _overlap(expected_result, actual_result)
    # Which they are does not depend on their weights, of which those by similarity are of the whole bank.
    nearest = replace(spec, k=min(NEAREST, len(bank)), weighting="uniform")
    compared = {
        "embedding": compare_embedding(expected, actual),
        "neighbours": {
            "k": retrieval.k,
            "overlap_min": float(overlap.min()),
            "overlap_mean": float(overlap.mean()),
            f"overlap_at_{NEAREST}": float(_overlap(*_retrieve(bank, nearest, expected, actual)).mean()),
        },
        "expression": compare_expression(expected_result.expression, actual_result.expression),
    }
    if rows is not None:
        truth = bank.expression[rows].astype(np.float64)
        r = [
            pearson_per_gene(result.expression.astype(np.float64), truth)
            for result in (expected_result, actual_result)
        ]
        if all(np.isfinite(of_genes).any() for of_genes in r):
            before, after = (float(np.nanmean(of_genes)) for of_genes in r)
            compared["measured"] = {
                "pearson_checkpoint": before,
                "pearson_export": after,
                "change": after - before,
            }
    return compared


def _retrieve(
    bank: Bank, spec: RetrievalSpec, expected: NDArray[np.float32], actual: NDArray[np.float32]
) -> tuple[RetrievalResult, RetrievalResult]:
    retriever = Retriever(bank, spec, provider="reference")
    try:
        return retriever.aggregate(expected, neighbors=True), retriever.aggregate(actual, neighbors=True)
    except NoWeights as error:
        raise ParityError(
            f"the cosines of tile {error.row + 1} to the bank add up to {error.total:.3g}, so they are no "
            "weights; choose another --weighting"
        ) from error


def _overlap(a: RetrievalResult, b: RetrievalResult) -> NDArray[np.float64]:
    """Share of common neighbors, float64 [n]."""
    assert a.neighbors is not None and b.neighbors is not None
    pairs = zip(a.neighbors, b.neighbors, strict=True)
    return np.array([len(np.intersect1d(p, q)) / len(p) for p, q in pairs])


def compare_embedding(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> dict[str, float]:
    """Largest difference and cosines of embeddings [n, D], in float64."""
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-300)
    return {
        "max_abs": float(np.abs(a - b).max()),
        "largest_value": float(np.abs(a).max()),
        "cosine_min": float(cosine.min()),
        "cosine_mean": float(cosine.mean()),
    }


def compare_expression(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> dict[str, Any]:
    """Error and Pearson r of expression [n, G] in float64; a gene constant over the tiles has no r.

    nrmse: root mean squared error over the genes' standard deviation over the tiles, each of all genes.
    """
    x, y = expected.astype(np.float64), actual.astype(np.float64)
    per_gene = pearson_per_gene(x, y)
    per_gene = per_gene[np.isfinite(per_gene)]
    overall = pearson_per_gene(x.reshape(-1, 1), y.reshape(-1, 1))[0]
    spread = float(np.sqrt(x.var(axis=0).mean()))
    return {
        "max_abs": float(np.abs(x - y).max()),
        "q999_abs": float(np.quantile(np.abs(x - y), 0.999)),
        "nrmse": float(np.sqrt(np.square(x - y).mean())) / spread if spread else None,
        "pearson": float(overall) if np.isfinite(overall) else None,
        "genes_compared": len(per_gene),
        "pearson_per_gene_mean": float(per_gene.mean()) if len(per_gene) else None,
        "pearson_per_gene_min": float(per_gene.min()) if len(per_gene) else None,
        "pearson_per_gene_median": float(np.median(per_gene)) if len(per_gene) else None,
    }


def compare_export(
    expected: NDArray[np.float32], session: Session, tiles: TileSet, bank: Bank, settings: Settings
) -> dict[str, Any]:
    """Compare expected embeddings of `tiles` with the graph's; ParityError if one is not finite."""
    actual = encode_with_export(session, tiles.pixels)
    check_finite(tiles, expected, actual)
    a, b = (values_alone(values, settings) for values in (expected, actual))
    width = bank.embedding.shape[1]
    predictions = (a[:, width:], b[:, width:]) if a.shape[1] > width else None
    return compare(a[:, :width], b[:, :width], bank, settings.retrieval, tiles.rows, predictions)


def values_alone(values: NDArray[np.float32], settings: Settings) -> NDArray[np.float32]:
    """Values [n, D + P] of tiles without neighbors; a graph with a context gives [own | context]."""
    if settings.neighborhood is None:
        return values
    own, context = np.split(values, 2, axis=1)
    return own + context


def check_finite(tiles: TileSet, *arrays: NDArray[np.float32]) -> None:
    """Raise ParityError if checkpoint or export produced a value that is not finite."""
    if not all(np.isfinite(values).all() for values in arrays):
        raise ParityError(f"a value is not finite on tiles of {tiles.source}; no bundle is written")


def prove(
    expected: NDArray[np.float32],
    session: Session,
    tiles: TileSet,
    bank: Bank,
    settings: Settings,
    tolerance: Tolerance | None = None,
) -> dict[str, Any]:
    """Prove that the fp32 export of a retrieval system matches its checkpoint.

    Parameters
    ----------
    expected : float32 [n, D]
        The checkpoint's embeddings of `tiles`.
    session : Session
        The exported graph.
    tiles : TileSet
    bank : Bank
    settings : Settings
    tolerance : Tolerance, optional

    Returns
    -------
    dict
        Content of parity.json.

    Raises
    ------
    ParityError
        Naming the figure out of tolerance.
    """
    tolerance = tolerance or Tolerance()
    figures = compare_export(expected, session, tiles, bank, settings)
    x = figures["expression"]
    checks = {
        **_embedding_checks(figures["embedding"], tolerance),
        "the overlap of the neighbors": _at_least(
            figures["neighbours"]["overlap_mean"], tolerance.overlap_mean
        ),
        "the 99.9 % quantile of the expression's difference": _at_most(
            x["q999_abs"], tolerance.expression_q999
        ),
        "the Pearson r of the expression": _at_least(x["pearson"], tolerance.expression_pearson),
    }
    return _record(checks, figures, session.provider, tiles, tolerance)


def prove_expression(
    expected: NDArray[np.float32],
    actual: NDArray[np.float32],
    tiles: TileSet,
    provider: str,
    tolerance: Tolerance | None = None,
    embeddings: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> dict[str, Any]:
    """Prove that an export without a bank matches its checkpoint; expression [n, G] → content of parity.json.

    embeddings: [n, D], expected and actual, of a network that gives them beside the expression. Raises
    ParityError, naming the figure out of tolerance.
    """
    tolerance = tolerance or Tolerance()
    check_finite(tiles, expected, actual)
    x = compare_expression(expected, actual)
    largest = float(np.abs(expected).max())
    checks = {
        "the largest difference of the expression": _at_most(
            x["max_abs"], tolerance.embedding_max_abs * largest
        ),
        "the Pearson r of the expression": _at_least(x["pearson"], tolerance.expression_pearson),
    }
    figures: dict[str, Any] = {"expression": {**x, "largest_value": largest}}
    if embeddings is not None:
        check_finite(tiles, *embeddings)
        figures["embedding"] = compare_embedding(*embeddings)
        checks |= _embedding_checks(figures["embedding"], tolerance)
    return _record(checks, figures, provider, tiles, tolerance)


def _embedding_checks(figures: dict[str, float], tolerance: Tolerance) -> dict[str, str]:
    return {
        "the largest difference of an embedding": _at_most(
            figures["max_abs"], tolerance.embedding_max_abs * figures["largest_value"]
        ),
        "the least cosine of an embedding": _at_least(figures["cosine_min"], tolerance.cosine_min),
    }


def _at_most(value: float, limit: float) -> str:
    """Empty if `value` is within the limit, else a complaint."""
    return "" if value <= limit else f"{value:.3g}, where at most {limit:.3g} is right"


def _at_least(value: float | None, limit: float) -> str:
    """Same for a lower limit; an undefined value (constant expression) passes."""
    return "" if value is None or value >= limit else f"{value:.7g}, where at least {limit:.7g} is right"


def _record(
    checks: dict[str, str], figures: dict[str, Any], provider: str, tiles: TileSet, tolerance: Tolerance
) -> dict[str, Any]:
    for name, complaint in checks.items():
        if complaint:
            raise ParityError(
                f"the exported graph does not give what the checkpoint gives: on {tiles}, {name} is "
                f"{complaint}; no bundle is written"
            )
    return {
        "reference": "checkpoint in torch, float32",
        "provider": provider,
        "tiles": {"source": tiles.source, "count": len(tiles.pixels)},
        **figures,
        "tolerance": asdict(tolerance),
        "passed": True,
    }
