"""The same retrieval by other libraries: cosine rank, d⁻² weights of L2 or L1, in each library's fastest way.

A peer prepares the bank outside the timing, then maps queries float32 [N, D] to expression float32 [N, G].
Those that build a score matrix process the queries in blocks to keep it small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.harness.measure import PeerUnavailable
from mclst.benchmarks.retrieval.synthetic import F32, Bank
from mclst.kernels.definition.spec import RetrievalSpec

Run = Callable[[F32], F32]
_BLOCK, _L1_BLOCK, _CUDA_BLOCK = 512, 32, 4096
_SPLIT_SCALE = 64.0
_FAISS_GPU_MAX_K = 2048


@dataclass(frozen=True)
class Peer:
    """A contender: `prepare` builds its run function; beyond `max_queries` its time is scaled."""

    name: str
    prepare: Callable[[Bank, RetrievalSpec, int], Run]
    max_queries: int | None = None


def published_loop(bank: Bank, spec: RetrievalSpec, threads: int) -> Run:
    """The published evaluation scripts: one topk, then a Python loop over spots that averages both tables."""
    torch = _torch(threads)
    norm_order = {"l1": 1, "l2": 2}[spec.distance]

    def run(queries: F32) -> F32:
        bank_units = torch.nn.functional.normalize(torch.tensor(bank.embedding), p=2, dim=-1)
        query_units = torch.nn.functional.normalize(torch.tensor(queries), p=2, dim=-1)
        indices = torch.topk(query_units @ bank_units.T, k=spec.k)[1].numpy()
        embedding = np.zeros((len(queries), bank.embedding.shape[1]))
        expression = np.zeros((len(queries), bank.expression.shape[1]))
        for i in range(len(queries)):
            neighbors = bank.embedding[indices[i]]
            distance = np.linalg.norm(neighbors - queries[i], axis=1, ord=norm_order)
            weight = np.reciprocal(distance**2)
            weight /= weight.sum()
            embedding[i] = np.average(neighbors, axis=0, weights=weight)
            expression[i] = np.average(bank.expression[indices[i]], axis=0, weights=weight)
        return expression.astype(np.float32)

    return run


def faiss_embedding_bag(bank: Bank, spec: RetrievalSpec, threads: int) -> Run:
    """FAISS's exact inner-product search, weights and `embedding_bag` by torch."""
    torch, search = _torch(threads), _faiss_search(bank, spec.k, threads)
    tensors = _TorchBank(torch, bank, spec, "cpu")

    def run(queries: F32) -> F32:
        cosine, rows = search(queries)
        q, r, c = (torch.from_numpy(x) for x in (queries, rows, cosine))
        return np.asarray(tensors.mean(q, r, c).numpy())

    return run


def faiss_csr(bank: Bank, spec: RetrievalSpec, threads: int) -> Run:
    """FAISS's exact inner-product search, weights by numpy, sums by a scipy sparse product."""
    import scipy.sparse as sp

    search, norms = _faiss_search(bank, spec.k, threads), np.linalg.norm(bank.embedding, axis=1)

    def run(queries: F32) -> F32:
        cosine, rows = search(queries)
        weight = _numpy_weights(bank.embedding, norms, spec, queries, rows, cosine)
        n, k = rows.shape
        matrix = sp.csr_matrix(
            (weight.ravel(), rows.ravel(), np.arange(0, n * k + 1, k)), shape=(n, len(bank.embedding))
        )
        return np.asarray(matrix @ bank.expression)

    return run


def torch_embedding_bag(
    bank: Bank, spec: RetrievalSpec, threads: int, device: str = "cpu", *, split: bool = False
) -> Run:
    """torch: matrix product, `topk`, `embedding_bag`. split: the product in float16 halves."""
    torch = _torch(threads)
    tensors = (_SplitBank if split else _TorchBank)(torch, bank, spec, device)

    def run(queries: F32) -> F32:
        parts = []
        for block in _blocks(len(queries), _BLOCK if device == "cpu" else _CUDA_BLOCK):
            q = torch.from_numpy(queries[block]).to(device)
            cosine, rows = torch.topk(tensors.cosines(q), spec.k, dim=1, sorted=False)
            parts.append(tensors.mean(q, rows, cosine))
        return np.asarray(torch.cat(parts).cpu().numpy())

    return run


def torch_masked_dense(bank: Bank, spec: RetrievalSpec, threads: int) -> Run:
    """torch: matrix product, `topk`, weights scattered into a dense matrix, a second matrix product."""
    torch = _torch(threads)
    tensors = _TorchBank(torch, bank, spec, "cpu")

    def run(queries: F32) -> F32:
        parts = []
        for block in _blocks(len(queries), _BLOCK):
            q = torch.from_numpy(queries[block])
            cosine, rows = torch.topk(tensors.cosines(q), spec.k, dim=1, sorted=False)
            dense = torch.zeros(len(q), len(bank.embedding)).scatter_(
                1, rows, tensors.weights(q, rows, cosine)
            )
            parts.append(dense @ tensors.expression)
        return np.asarray(torch.cat(parts).numpy())

    return run


def numpy_argpartition(bank: Bank, spec: RetrievalSpec, threads: int) -> Run:
    """numpy: matrix product, then `argpartition`, a gather and a product per query on every thread."""
    units, norms = _units(bank.embedding), np.linalg.norm(bank.embedding, axis=1)

    def finish(queries: F32, cosines: F32, out: F32) -> None:
        rows = np.argpartition(cosines, -spec.k, axis=1)[:, -spec.k :]
        cosine = np.take_along_axis(cosines, rows, axis=1)
        weight = _numpy_weights(bank.embedding, norms, spec, queries, rows, cosine)
        for i in range(len(queries)):
            out[i] = weight[i] @ bank.expression[rows[i]]

    def run(queries: F32) -> F32:
        out = np.empty((len(queries), bank.expression.shape[1]), np.float32)
        with ThreadPoolExecutor(threads) as pool:
            for block in _blocks(len(queries), _BLOCK):
                q, to = queries[block], out[block]
                cosines = _units(q) @ units.T
                shares = list(_blocks(len(q), max(1, -(-len(q) // (2 * threads)))))
                list(pool.map(lambda s: finish(q[s], cosines[s], to[s]), shares))  # noqa: B023 - done before the next
        return out

    return run


def torch_cuda(bank: Bank, spec: RetrievalSpec, threads: int) -> Run:
    """torch on the CUDA device: matrix product, `topk`, `embedding_bag`; transfers included."""
    _require_cuda(_torch(threads))
    return torch_embedding_bag(bank, spec, threads, "cuda")


def torch_split_cuda(bank: Bank, spec: RetrievalSpec, threads: int) -> Run:
    """As `torch_cuda`, with the product on tensor cores: [hi, hi, lo] · [hi, lo, hi] of float16 halves."""
    torch = _torch(threads)
    _require_cuda(torch)
    if "dtype" not in torch.ops.aten.mm.overloads():
        raise PeerUnavailable("this torch has no float16 product with a float32 result")
    return torch_embedding_bag(bank, spec, threads, "cuda", split=True)


def faiss_gpu(bank: Bank, spec: RetrievalSpec, threads: int) -> Run:
    """FAISS's search on the GPU, `embedding_bag` by torch on the same device."""
    import faiss

    torch = _torch(threads)
    _require_cuda(torch)
    if not hasattr(faiss, "StandardGpuResources"):
        raise PeerUnavailable("this FAISS has no GPU support")
    if spec.k > _FAISS_GPU_MAX_K:
        raise PeerUnavailable(f"its kernels support k up to {_FAISS_GPU_MAX_K}")
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), bank.embedding.shape[1])
    index.add(_units(bank.embedding))
    tensors = _TorchBank(torch, bank, spec, "cuda")

    def run(queries: F32) -> F32:
        cosine, rows = index.search(_units(queries), spec.k)
        q, r, c = (torch.from_numpy(x).to("cuda") for x in (queries, rows, cosine))
        return np.asarray(tensors.mean(q, r, c).cpu().numpy())

    return run


def cuvs_brute_force(bank: Bank, spec: RetrievalSpec, threads: int) -> Run:
    """cuVS's brute force, `embedding_bag` by torch on the same device."""
    if find_spec("cuvs") is None:
        raise PeerUnavailable("cuvs is not installed")
    torch = _torch(threads)
    _require_cuda(torch)
    from cuvs.neighbors import brute_force  # type: ignore[import-not-found]

    units = torch.from_numpy(_units(bank.embedding)).to("cuda")
    index = brute_force.build(units, metric="inner_product")
    tensors = _TorchBank(torch, bank, spec, "cuda")

    def run(queries: F32) -> F32:
        q = torch.from_numpy(queries).to("cuda")
        result = brute_force.search(index, torch.nn.functional.normalize(q, dim=1), spec.k)
        cosine, rows = (torch.as_tensor(x, device="cuda") for x in result)
        return np.asarray(tensors.mean(q, rows, cosine).cpu().numpy())

    return run


MAX_ON_CPU = 16_384
"""Most queries that CPU libraries are timed with; they work block by block, so time scales linearly."""
PEERS = (
    Peer("published loop", published_loop, max_queries=1000),
    Peer("faiss + embedding_bag", faiss_embedding_bag, MAX_ON_CPU),
    Peer("faiss + scipy csr", faiss_csr, MAX_ON_CPU),
    Peer("torch topk + embedding_bag", torch_embedding_bag, MAX_ON_CPU),
    Peer("torch topk + masked dense", torch_masked_dense, MAX_ON_CPU),
    Peer("numpy argpartition + gather", numpy_argpartition, MAX_ON_CPU),
    Peer("torch-cuda topk + embedding_bag", torch_cuda),
    Peer("torch-cuda split GEMM + topk + embedding_bag", torch_split_cuda),
    Peer("faiss-gpu + embedding_bag", faiss_gpu),
    Peer("cuvs + embedding_bag", cuvs_brute_force),
)
DEVICE_PEERS = tuple(
    peer for peer in PEERS if "cuda" in peer.name or "gpu" in peer.name or "cuvs" in peer.name
)
"""Those that search on a GPU."""


class _TorchBank:
    """The bank as torch tensors, with the weights and the weighted sum."""

    def __init__(self, torch: Any, bank: Bank, spec: RetrievalSpec, device: str) -> None:
        self._torch, self._distance = torch, spec.distance
        self.embedding = torch.from_numpy(bank.embedding).to(device)
        self.expression = torch.from_numpy(bank.expression).to(device)
        self._norm = self.embedding.norm(dim=1)
        self._units_t = (self.embedding / self._norm[:, None]).T.contiguous()

    def cosines(self, queries: Any) -> Any:
        return self._torch.nn.functional.normalize(queries, dim=1) @ self._units_t

    def weights(self, queries: Any, rows: Any, cosine: Any) -> Any:
        if self._distance == "l2":
            q, b = queries.norm(dim=1, keepdim=True), self._norm[rows]
            squared = (q * q + b * b - 2 * q * b * cosine).clamp_min(1e-12)
        else:
            parts = [
                (self.embedding[rows[s]] - queries[s, None]).abs_().sum(dim=-1)
                for s in _blocks(len(queries), _L1_BLOCK if queries.device.type == "cpu" else _BLOCK)
            ]
            squared = self._torch.cat(parts).square_()
        inverse = squared.reciprocal_()
        return inverse / inverse.sum(dim=1, keepdim=True)

    def mean(self, queries: Any, rows: Any, cosine: Any) -> Any:
        weight = self.weights(queries, rows, cosine)
        return self._torch.nn.functional.embedding_bag(
            rows, self.expression, per_sample_weights=weight, mode="sum"
        )


class _SplitBank(_TorchBank):
    """Cosines from float16 halves of the unit vectors, accurate to about 2⁻²², on tensor cores."""

    def __init__(self, torch: Any, bank: Bank, spec: RetrievalSpec, device: str) -> None:
        super().__init__(torch, bank, spec, device)
        high, low = self._halves(self._units_t.T)
        self._parts_t = torch.cat([high, low, high], dim=1).T.contiguous()

    def _halves(self, units: Any) -> tuple[Any, Any]:
        scaled = units * _SPLIT_SCALE
        high = scaled.half()
        return high, (scaled - high.float()).half()

    def cosines(self, queries: Any) -> Any:
        high, low = self._halves(self._torch.nn.functional.normalize(queries, dim=1))
        parts = self._torch.cat([high, high, low], dim=1)
        if parts.device.type == "cpu":  # where torch has no such product
            products = parts.float() @ self._parts_t.float()
        else:
            products = self._torch.mm(parts, self._parts_t, out_dtype=self._torch.float32)
        return products / _SPLIT_SCALE**2


def _numpy_weights(
    embedding: F32, norms: F32, spec: RetrievalSpec, queries: F32, rows: NDArray[np.int64], cosine: F32
) -> F32:
    if spec.distance == "l2":
        q, b = np.linalg.norm(queries, axis=1)[:, None], norms[rows]
        squared = np.maximum(q * q + b * b - 2 * q * b * cosine, np.float32(1e-12))
    else:
        squared = np.empty(rows.shape, np.float32)
        for s in _blocks(len(queries), _L1_BLOCK):
            difference = embedding[rows[s]] - queries[s, None]
            squared[s] = np.square(np.abs(difference, out=difference).sum(axis=-1))
    inverse = 1 / squared
    return np.asarray(inverse / inverse.sum(axis=1, keepdims=True))


def _faiss_search(bank: Bank, k: int, threads: int) -> Callable[[F32], tuple[F32, NDArray[np.int64]]]:
    if find_spec("faiss") is None:
        raise PeerUnavailable("faiss is not installed")
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(bank.embedding.shape[1])
    index.add(_units(bank.embedding))
    return lambda queries: index.search(_units(queries), k)


def _torch(threads: int) -> Any:
    if find_spec("torch") is None:
        raise PeerUnavailable("torch is not installed")
    import torch

    torch.set_num_threads(threads)
    return torch


def _require_cuda(torch: Any) -> None:
    if not torch.cuda.is_available():
        raise PeerUnavailable("no CUDA device")


def _units(vectors: F32) -> F32:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def _blocks(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
