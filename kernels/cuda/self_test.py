"""The kernels against the float64 definition on this device, before "auto" relies on them.

Runs once per device, driver and version of this package, in well under a second. The verdict is kept in the
user's cache.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.cuda.driver import Driver
from mclst.kernels.cuda.provider import CudaProvider
from mclst.kernels.definition import reference
from mclst.kernels.definition.contract import ProviderError
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.definition.user_cache import cache_folder, read_own, store_own

# Every kernel, rank and distance is in one of these, all with equal rows; the dense mean is proven to 4e-6.
_CASES: tuple[tuple[RetrievalSpec, dict[str, Any], float], ...] = (
    (RetrievalSpec(k=23), {"sample": 64, "dense_from": 2.0}, 1e-6),
    (
        RetrievalSpec(k=40, rank="l2", distance="cosine", weighting="softmax", temperature=3.0),
        {"sample": 64, "dense_from": 0.0},
        4e-6,
    ),
    (RetrievalSpec(k=9, rank="l1", distance="l2"), {"sample": 48, "dense_from": 2.0}, 1e-6),
    (RetrievalSpec(k=30, rank="cosine", distance="l2"), {"sample": 0, "dense_from": 2.0}, 1e-6),
)
_QUERIES, _ROWS, _COLUMNS, _GENES = 20, 260, 37, 21
_WORKSPACE_BYTES = 8 << 20


class SelfTestFailed(ProviderError):
    """The device gives other results than the definition."""

    def __init__(self, device: str, why: str) -> None:
        super().__init__(
            f"{device} fails the self-test of retrieval ({why}); update its driver, and if that does not "
            "help, report it with the output of make gpu-check"
        )


@dataclass(frozen=True)
class _Points:
    queries: NDArray[np.float32]
    embedding: NDArray[np.float32]
    expression: NDArray[np.float32]


def check_device(driver: Driver) -> None:
    """Raise SelfTestFailed if the kernels are wrong on this device, now or when it was last tested.

    Other ProviderErrors say nothing of the kernels (such as: no memory) and are not remembered.
    """
    path = cache_folder() / f"self-test-{_key(driver)}.json"
    why = _read(path)
    if why is None:
        why = run(driver)
        store_own(path, json.dumps({"device": driver.device, "why": why}).encode())
    if why:
        raise SelfTestFailed(driver.device, why)


def run(driver: Driver) -> str:
    """What differs from the definition, "" if nothing does."""
    points = _points()
    for spec, how, tolerance in _CASES:
        cuda = CudaProvider(
            points.embedding, points.expression, spec, driver=driver, workspace_bytes=_WORKSPACE_BYTES, **how
        )
        try:
            got = cuda.aggregate(points.queries, neighbors=True)
        finally:
            cuda.release()
        if why := _difference(got, points, spec, tolerance):
            return f"{spec.rank} and {spec.distance}: {why}"
    return ""


def _points() -> _Points:
    """Clusters with 40 equal rows, a zero row and a zero query."""
    rng = np.random.default_rng(0)
    centers = 2 * rng.normal(size=(4, _COLUMNS))
    points = centers[rng.integers(4, size=_QUERIES + _ROWS)] + rng.normal(size=(_QUERIES + _ROWS, _COLUMNS))
    queries, embedding = points[:_QUERIES].astype(np.float32), points[_QUERIES:].astype(np.float32)
    embedding[100:140] = embedding[100]
    queries[:3] = embedding[100] + np.float32(0.01)
    embedding[7], queries[5] = 0, 0
    return _Points(queries, embedding, rng.gamma(1.0, size=(_ROWS, _GENES)).astype(np.float32))


def _difference(got: RetrievalResult, points: _Points, spec: RetrievalSpec, tolerance: float) -> str:
    expected = reference.aggregate(points.queries, points.embedding, points.expression, spec, neighbors=True)
    assert got.neighbors is not None and expected.neighbors is not None
    if not np.array_equal(got.neighbors, expected.neighbors):
        return "other neighbors"
    worst = float(np.abs(got.expression - expected.expression).max() / points.expression.max())
    # NaN is also not within.
    if not worst <= tolerance:
        return f"expression is off by {worst:.1e} of the largest"
    for name in ("nearest", "effective_k"):
        if not np.allclose(getattr(got, name), getattr(expected, name), rtol=1e-5, atol=0):
            return f"other values of {name}"
    return ""


def _key(driver: Driver) -> str:
    """Of the device, its driver, the binding, and the bytes of this package."""
    files = sorted(path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".cu", ".cuh"))
    digest = hashlib.sha256(repr((driver.name, driver.device, driver.version, driver.architecture)).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _read(path: Path) -> str | None:
    """The verdict on record; None without one."""
    try:
        return str(json.loads(read_own(path) or b"")["why"])
    except (ValueError, KeyError, TypeError):
        return None
