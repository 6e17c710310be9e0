"""Measured peaks of this machine: matrix products by precision, and a copy through memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from mclst.benchmarks.roofline.retrieval_bound import Peaks, Work, bound_s

if TYPE_CHECKING:
    from mclst.benchmarks.roofline.onnx_flops import GraphWork

SIDE, COPY_BYTES = 2048, 256 << 20
"""Side of the matrices on the host (four times as large on a device), and bytes copied."""
_TRIES = 5


def has_cuda() -> bool:
    """Whether torch, which measures a device's peaks, sees a CUDA device."""
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def host_peaks(threads: int, *, side: int = SIDE, copy_bytes: int = COPY_BYTES) -> Peaks:
    """Measure float32 products by numpy's BLAS and a copy, by `threads` threads; the best of a few tries.

    Without threadpoolctl, which scikit-learn brings, BLAS takes its own number of threads.
    """
    rng = np.random.default_rng(0)
    a, b = rng.random((2, side, side), dtype=np.float32)
    out = np.empty_like(a)
    with _blas_threads(threads):
        flops = 2 * side**3 / _best_seconds(lambda: np.matmul(a, b, out=out))
    source = np.ones(copy_bytes // 4, dtype=np.float32)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        seconds = _best_seconds(lambda: list(pool.map(lambda part: np.copyto(part[1], part[0]), parts)))
    return Peaks(flops, 2 * copy_bytes / seconds)


def cuda_peaks() -> Peaks:
    """Measure the same on the CUDA device by torch; float32 without TF32."""
    import torch

    source, target = torch.ones(2, COPY_BYTES, device="cuda")

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return Peaks(_cuda_product("float32"), 2 * 4 * COPY_BYTES / _best_seconds(copy))


def measure_peaks(
    threads: int, *, gpu: bool, side: int = SIDE, copy_bytes: int = COPY_BYTES
) -> dict[str, Any]:
    """Peaks of `host` and `cuda`: operations_per_s by precision, and bytes_per_s.

    On the host fp32 is by numpy's BLAS, bf16 by torch, int8 by ONNX Runtime; None where one cannot be
    measured. The device's are by torch, None without a device.
    """
    host = host_peaks(threads, side=side, copy_bytes=copy_bytes)
    peaks: dict[str, Any] = {
        "host": {
            "operations_per_s": {
                "fp32": host.flops_per_s,
                "bf16": _bf16(threads, side),
                "int8": _int8(threads, side),
            },
            "bytes_per_s": host.bytes_per_s,
        },
        "cuda": None,
    }
    if gpu:
        device = cuda_peaks()
        peaks["cuda"] = {
            "operations_per_s": {
                "fp32": device.flops_per_s,
                "fp16": _cuda_product("float16"),
                "bf16": _cuda_product("bfloat16"),
                "int8": None,
            },
            "bytes_per_s": device.bytes_per_s,
        }
    return peaks


def roofline_s(work: GraphWork, peaks: dict[str, Any], precision: str) -> float | None:
    """Roofline of a graph in seconds at measured peaks; None where the precision's peak was not measured."""
    operations = peaks["operations_per_s"].get(precision)
    if operations is None:
        return None
    return bound_s(Work(work.products, work.least_bytes), Peaks(operations, peaks["bytes_per_s"]))


def _blas_threads(threads: int) -> AbstractContextManager[Any]:
    try:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[Any] = threadpool_limits(threads, user_api="blas")
    return limits


def _bf16(threads: int, side: int) -> float | None:
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    a, b = torch.rand(2, side, side).to(torch.bfloat16)
    return 2 * side**3 / _best_seconds(lambda: torch.matmul(a, b))


def _int8(threads: int, side: int) -> float | None:
    try:
        import onnxruntime as ort
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return None
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.integers(-99, 99, (side, side), dtype=np.int8), "b")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [side, side])],
        [helper.make_tensor_value_info("c", TensorProto.INT32, [side, side])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    a = rng.integers(0, 255, (side, side), dtype=np.uint8)
    return 2 * side**3 / _best_seconds(lambda: session.run(None, {"a": a}))


def _cuda_product(dtype: str) -> float:
    import torch

    side = 4 * SIDE
    a, b = torch.rand(2, side, side, device="cuda").to(getattr(torch, dtype))
    out = torch.empty_like(a)

    def product() -> None:
        torch.matmul(a, b, out=out)
        torch.cuda.synchronize()

    return 2 * side**3 / _best_seconds(product)


def _best_seconds(function: Callable[[], object]) -> float:
    function()
    seconds = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
