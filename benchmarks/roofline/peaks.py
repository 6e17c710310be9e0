"""What this machine's arithmetic and memory can do by precision, measured here and now, for encoders to be held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mclst.benchmarks.roofline.onnx_flops import GraphWork
from mclst.benchmarks.roofline.retrieval_bound import Peaks, Work, bound_s, cuda_peaks, host_peaks

_SIDE = 2048
_TRIES = 5


def has_cuda() -> bool:
    """Whether there is a CUDA device that torch, which measures its peaks, can use."""
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def measure_peaks(threads: int, *, gpu: bool) -> dict[str, Any]:
    """Operations a second of a large matrix product by precision, and bytes a second of a large copy.

    `host`: fp32 by numpy's BLAS, bf16 by torch where it is installed, int8 by ONNX Runtime; None where that cannot be
    measured. `cuda`: by torch, None without a device or torch.
    """
    host = host_peaks(threads)
    found: dict[str, Any] = {
        "host": {
            "operations_per_s": {
                "fp32": host.flops_per_s,
                "bf16": _bf16(threads),
                "int8": _int8(threads),
            },
            "bytes_per_s": host.bytes_per_s,
        },
        "cuda": None,
    }
    if gpu:
        device = cuda_peaks()
        found["cuda"] = {
            "operations_per_s": {
                "fp32": device.flops_per_s,
                "fp16": _cuda_half("float16"),
                "bf16": _cuda_half("bfloat16"),
                "int8": None,
            },
            "bytes_per_s": device.bytes_per_s,
        }
    return found


def roofline(work: GraphWork, peaks: dict[str, Any], precision: str) -> float | None:
    """The least seconds for `work` at measured peaks; None where the precision's peak was not measured."""
    operations = peaks["operations_per_s"].get(precision)
    if operations is None:
        return None
    return bound_s(Work(work.products, work.least_bytes), Peaks(operations, peaks["bytes_per_s"]))


def _bf16(threads: int) -> float | None:
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    a, b = torch.rand(2, _SIDE, _SIDE).to(torch.bfloat16)
    return _rate(lambda: torch.matmul(a, b))


def _int8(threads: int) -> float | None:
    try:
        import onnxruntime as ort
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return None
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.integers(-99, 99, (_SIDE, _SIDE), dtype=np.int8), "b")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [_SIDE, _SIDE])],
        [helper.make_tensor_value_info("c", TensorProto.INT32, [_SIDE, _SIDE])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    a = rng.integers(0, 255, (_SIDE, _SIDE), dtype=np.uint8)
    return _rate(lambda: session.run(None, {"a": a}))


def _cuda_half(kind: str) -> float:
    import torch

    a, b = torch.rand(2, 4 * _SIDE, 4 * _SIDE, device="cuda").to(getattr(torch, kind))

    def product() -> None:
        torch.matmul(a, b)
        torch.cuda.synchronize()

    return 64 * _rate(product)


def _rate(product: Callable[[], object]) -> float:
    """Operations a second of a product of two _SIDE x _SIDE matrices, the best of a few tries."""
    product()
    taken = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        product()
        taken.append(time.perf_counter() - start)
    return 2 * _SIDE**3 / min(taken)
