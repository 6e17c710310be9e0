"""Proof that the exported graph gives what the checkpoint gives, written to `parity.json`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mclst.export.onnx.graph import preprocess
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.retriever import Retriever
from mclst.runtime.bundle.bank import Bank
from mclst.runtime.bundle.manifest import Retrieval, Settings
from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import ParityError
from mclst.sections.accuracy import pearson_per_gene

NEAREST = 50
"""Neighbours whose overlap is told beside that of the k averaged: k is up to a fifth of a bank, and hides more."""


@dataclass(frozen=True)
class Tolerance:
    """What a float32 export must keep.

    embedding_max_abs: largest difference, as a share of the largest value. cosine_min: worst tile.
    overlap_mean: share of the k neighbours in common. expression_q999: 99.9 % quantile of the absolute difference.
    expression_pearson: over all values.
    """

    embedding_max_abs: float = 1e-3
    cosine_min: float = 0.99999
    overlap_mean: float = 0.98
    expression_q999: float = 1e-3
    expression_pearson: float = 0.99999


@dataclass(frozen=True)
class Tiles:
    """Tiles to compare on: RGB uint8 [n, S, S, 3], and where they are from.

    rows: int64 [n], the bank's rows of the spots they were cut around, None where they were cut around none.
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
    """The checkpoint's own image part, float32 [n, D], preprocessed and run in torch, eight tiles at a time.

    The eight symmetries are turned here in numpy, one after another, and not as the graph does it.
    """
    symmetries = _SYMMETRIES[: settings.preprocessing.symmetries]
    parts = []
    with torch.inference_mode():
        for i in range(0, len(tiles), 8):
            found = [
                network.encode_tiles(preprocess(turn(tiles[i : i + 8]), settings.preprocessing))  # type: ignore[operator]
                for turn in symmetries
            ]
            parts.append(torch.stack(found).double().mean(0).float().numpy())
    return np.concatenate(parts)


def encode_with_export(session: Session, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The exported graph's embeddings float32 [n, D], in batches of 1, 3 and the rest: the batch must not matter."""
    parts = [tiles[:1], tiles[1:4], tiles[4:]]
    return np.concatenate([session.encode(part) for part in parts if len(part)])


def compare(
    expected: NDArray[np.float32],
    found: NDArray[np.float32],
    bank: Bank,
    retrieval: Retrieval,
    rows: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """Embedding error, top-k overlap and per-gene Pearson r of the expression, in float64.

    rows: the bank's rows of the tiles' own spots; then also how well either predicts what was measured there (each
    spot being one of its own reference spots, which flatters both alike).
    Genes whose expected expression is constant over the tiles have no r and are left out of it.
    """
    a, b = expected.astype(np.float64), found.astype(np.float64)
    cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-300)
    spec = retrieval.spec()
    one, two = _retrieve(bank, spec, expected, found)
    overlap = _overlap(one, two)
    nearest = replace(spec, k=min(NEAREST, len(bank)))
    compared = {
        "embedding": {
            "max_abs": float(np.abs(a - b).max()),
            "largest_value": float(np.abs(a).max()),
            "cosine_min": float(cosine.min()),
            "cosine_mean": float(cosine.mean()),
        },
        "neighbours": {
            "k": retrieval.k,
            "overlap_min": float(overlap.min()),
            "overlap_mean": float(overlap.mean()),
            f"overlap_at_{NEAREST}": float(_overlap(*_retrieve(bank, nearest, expected, found)).mean()),
        },
        "expression": compare_expression(one.expression, two.expression),
    }
    if rows is not None:
        truth = bank.expression[rows].astype(np.float64)
        r = [np.nanmean(pearson_per_gene(e.expression.astype(np.float64), truth)) for e in (one, two)]
        if np.isfinite(r).all():
            compared["measured"] = {
                "pearson_checkpoint": float(r[0]),
                "pearson_export": float(r[1]),
                "change": float(r[1] - r[0]),
            }
    return compared


def _retrieve(
    bank: Bank, spec: RetrievalSpec, expected: NDArray[np.float32], found: NDArray[np.float32]
) -> tuple[RetrievalResult, RetrievalResult]:
    retriever = Retriever(bank, spec, provider="reference")
    return retriever.aggregate(expected, neighbours=True), retriever.aggregate(found, neighbours=True)


def _overlap(one: RetrievalResult, two: RetrievalResult) -> NDArray[np.float64]:
    """Share of the neighbours in common, float64 [n]."""
    assert one.neighbours is not None and two.neighbours is not None
    pairs = zip(one.neighbours, two.neighbours, strict=True)
    return np.array([len(np.intersect1d(p, q)) / len(p) for p, q in pairs])


def compare_expression(expected: NDArray[np.float32], found: NDArray[np.float32]) -> dict[str, Any]:
    """Error and Pearson r of expression [n, G], in float64; a gene constant over the tiles has no r."""
    x, y = expected.astype(np.float64), found.astype(np.float64)
    per_gene = pearson_per_gene(x, y)
    per_gene = per_gene[np.isfinite(per_gene)]
    whole = pearson_per_gene(x.reshape(-1, 1), y.reshape(-1, 1))[0]
    return {
        "max_abs": float(np.abs(x - y).max()),
        "q999_abs": float(np.quantile(np.abs(x - y), 0.999)),
        "pearson": float(whole) if np.isfinite(whole) else None,
        "genes_compared": len(per_gene),
        "pearson_per_gene_mean": float(per_gene.mean()) if len(per_gene) else None,
        "pearson_per_gene_min": float(per_gene.min()) if len(per_gene) else None,
        "pearson_per_gene_median": float(np.median(per_gene)) if len(per_gene) else None,
    }


def compare_export(
    expected: NDArray[np.float32], session: Session, tiles: Tiles, bank: Bank, settings: Settings
) -> dict[str, Any]:
    """`compare` the checkpoint's embeddings of `tiles` with the graph's; ParityError where one is not finite."""
    exported = encode_with_export(session, tiles.pixels)
    check_finite(tiles, expected, exported)
    return compare(expected, exported, bank, settings.retrieval, tiles.rows)


def check_finite(tiles: Tiles, *found: NDArray[np.float32]) -> None:
    """Raise ParityError where checkpoint or export gives a value that is not finite."""
    if not all(np.isfinite(values).all() for values in found):
        raise ParityError(f"a value is not finite on tiles of {tiles.source}; no bundle is written")


def prove(
    expected: NDArray[np.float32],
    session: Session,
    tiles: Tiles,
    bank: Bank,
    settings: Settings,
    tolerance: Tolerance | None = None,
) -> dict[str, Any]:
    """Compare the checkpoint's embeddings [n, D] of `tiles` with the fp32 export's; the content of parity.json.

    Raises ParityError, naming the figure that is out of tolerance.
    """
    tolerance = tolerance or Tolerance()
    found = compare_export(expected, session, tiles, bank, settings)
    e, x = found["embedding"], found["expression"]
    checks = {
        "the largest difference of an embedding": _at_most(
            e["max_abs"], tolerance.embedding_max_abs * e["largest_value"]
        ),
        "the least cosine of an embedding": _at_least(e["cosine_min"], tolerance.cosine_min),
        "the overlap of the neighbours": _at_least(
            found["neighbours"]["overlap_mean"], tolerance.overlap_mean
        ),
        "the 99.9 % quantile of the expression's difference": _at_most(
            x["q999_abs"], tolerance.expression_q999
        ),
        "the Pearson r of the expression": _at_least(x["pearson"], tolerance.expression_pearson),
    }
    return _verdict(checks, found, session.provider, tiles, tolerance)


def prove_expression(
    expected: NDArray[np.float32],
    exported: NDArray[np.float32],
    tiles: Tiles,
    provider: str,
    tolerance: Tolerance | None = None,
) -> dict[str, Any]:
    """Compare expression [n, G] of checkpoint and export where there is no bank; the content of parity.json.

    Raises ParityError, naming the figure that is out of tolerance.
    """
    tolerance = tolerance or Tolerance()
    check_finite(tiles, expected, exported)
    x = compare_expression(expected, exported)
    largest = float(np.abs(expected).max())
    checks = {
        "the largest difference of the expression": _at_most(
            x["max_abs"], tolerance.embedding_max_abs * largest
        ),
        "the Pearson r of the expression": _at_least(x["pearson"], tolerance.expression_pearson),
    }
    return _verdict(checks, {"expression": {**x, "largest_value": largest}}, provider, tiles, tolerance)


def _at_most(value: float, limit: float) -> str:
    """Empty where `value` keeps the limit, else both in words."""
    return "" if value <= limit else f"{value:.3g}, where at most {limit:.3g} is right"


def _at_least(value: float | None, limit: float) -> str:
    """The same from below; a value that is not defined (one expression throughout) is left to the other figures."""
    return "" if value is None or value >= limit else f"{value:.7g}, where at least {limit:.7g} is right"


def _verdict(
    checks: dict[str, str], found: dict[str, Any], provider: str, tiles: Tiles, tolerance: Tolerance
) -> dict[str, Any]:
    for name, complaint in checks.items():
        if complaint:
            raise ParityError(
                f"the exported graph does not give what the checkpoint gives: on {tiles}, {name} is {complaint}; no bundle is written"
            )
    return {
        "reference": "checkpoint in torch, float32",
        "provider": provider,
        "tiles": {"source": tiles.source, "count": len(tiles.pixels)},
        **found,
        "tolerance": asdict(tolerance),
        "passed": True,
    }
