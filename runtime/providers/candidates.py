"""Which providers and precisions could run a bundle's encoder here, and which one probably is the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

from mclst.kernels.cuda.devices import driver_is_installed
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.choices import FASTEST_FIRST, ON_CPU
from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.micro_batches import is_heavy
from mclst.runtime.encoder.tensorrt.engine_cache import EngineRequest, find_engine
from mclst.runtime.encoder.tensorrt.library import load_library
from mclst.runtime.errors import ResourceError
from mclst.runtime.providers.instruction_sets import gpu_multiplies, instructions_of, processor_id
from mclst.runtime.providers.opening import check_provider, flavor_of
from mclst.runtime.providers.timings import Candidate
from mclst.runtime.resources import available_cores

BUILT_FIRST = ("fp16", "fp32")
"""Precisions of which TensorRT gets an engine if it has none: the first that the bundle has."""

ON_CUDA = ("fp32", "fp16")
"""ONNX Runtime's CUDA provider has no int8 products for explicit Q/DQ, and few operators in bf16."""

FAST_PRODUCTS = ("AMX-INT8", "AMX-BF16", "AVX-512 VNNI", "AVX-VNNI", "I8MM", "dot product")
"""Instruction sets with which OpenVINO is probably the fastest, the fastest first."""


@dataclass(frozen=True)
class ChoiceRequest:
    """What may be chosen.

    provider, precision: "auto", or the one to take. batch: tiles encoded at once. threads: of the CPU, all
    cores by default. build: whether TensorRT may build an engine. measure: whether candidates may be opened
    and tried.
    """

    provider: str
    precision: str
    batch: int
    threads: int = field(default_factory=available_cores)
    build: bool = True
    measure: bool = True


def runs_on_cpu(provider: str) -> bool:
    """Whether a provider, or what "auto" chooses from, is on the CPU."""
    return provider in ON_CPU or not any(_is_here(name) for name in FASTEST_FIRST if name not in ON_CPU)


def device_id(provider: str) -> str:
    """Return what tells the device of an available provider from others: the processor or the GPU."""
    return processor_id() if provider in ON_CPU else str(CudaDevice().gpu)


def candidates(bundle: Bundle, precisions: tuple[str, ...], request: ChoiceRequest) -> list[tuple[str, str]]:
    """Return each (provider, precision) that is here and that the device computes in by itself.

    Where a GPU's provider is here, those on the CPU are left out.
    """
    names: list[tuple[str, str]] = []
    for provider in FASTEST_FIRST if request.provider == "auto" else (request.provider,):
        if names and provider in ON_CPU and names[0][0] not in ON_CPU:
            break
        if not _is_here(provider):
            continue
        names += [(provider, p) for p in _precisions_of(provider, bundle, precisions, request)]
    return names


def _is_here(provider: str) -> bool:
    if provider in ON_CPU:
        # Importing it takes up to half a second, which a remembered choice may spare.
        return find_spec({"cpu": "onnxruntime"}.get(provider, provider)) is not None
    if not driver_is_installed():  # before a binding, which takes time to import
        return False
    try:
        CudaDevice()
        check_provider(provider)
    except ResourceError:
        return False
    return True


def _precisions_of(
    provider: str, bundle: Bundle, precisions: tuple[str, ...], request: ChoiceRequest
) -> list[str]:
    if provider in ON_CPU:
        return [p for p in precisions if instructions_of(provider, p) is not None]
    gpu = CudaDevice().gpu
    native = [p for p in precisions if gpu_multiplies(p, gpu.compute_capability)]
    if provider == "cuda":
        return [p for p in native if p in ON_CUDA]
    library = load_library(flavor_of(provider))
    ready = [
        p
        for p in native
        if find_engine(bundle.path, EngineRequest(bundle.encoder(p), p, library, gpu, request.batch))[0]
    ]
    if ready or not request.build:
        return ready
    return [p for p in BUILT_FIRST if p in native][:1] or native[:1]


def lanes_of(names: Sequence[tuple[str, str]], request: ChoiceRequest) -> int:
    """Return how many tiles candidates encode side by side; a GPU the whole batch."""
    return request.batch if names[0][0] not in ON_CPU else min(request.threads, request.batch)


def fewer_lanes(bundle: Bundle, name: Candidate, lanes: int) -> Candidate | None:
    """Return a candidate with half as many lanes; None on a GPU, and of a network with few weights."""
    # With small networks a lane per core was the fastest wherever it was measured.
    provider, precision, now = name
    if provider not in ON_CPU or not is_heavy(bundle.encoder(precision)):
        return None
    half = (now or lanes) // 2
    return (provider, precision, half) if half else None


def expected_order(names: Sequence[tuple[str, str]]) -> list[Candidate]:
    """Sort candidates so that the first is probably the fastest, and the second fp32 of the first provider.

    On the CPU it is the one with the fastest products of `FAST_PRODUCTS`; on a GPU the given order stays.
    """

    def rank(name: tuple[str, str]) -> int:
        products = instructions_of(*name) if name[0] == "openvino" else None
        return FAST_PRODUCTS.index(products) if products in FAST_PRODUCTS else len(FAST_PRODUCTS)

    fp32 = next((name for name in names if name[1] == "fp32"), None)
    first, *others = sorted(names, key=rank)
    others.sort(key=lambda name: name != fp32)  # opened fast on the CPU, and what a speed is compared with
    return [(*name, None) for name in (first, *others)]
