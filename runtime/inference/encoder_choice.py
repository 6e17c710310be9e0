"""Which provider, precision and lanes run a bundle's encoder: those named, or the fastest measured here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

import numpy as np

from mclst.kernels.cuda.devices import driver_is_installed
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.choices import FASTEST_FIRST, ON_CPU, PRECISIONS
from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.micro_batches import is_heavy
from mclst.runtime.encoder.session import DEFAULT_BATCH_SIZE, Session
from mclst.runtime.encoder.tensorrt.engine_cache import EngineRequest, find_engine
from mclst.runtime.encoder.tensorrt.library import load_library
from mclst.runtime.errors import BundleError, ResourceError
from mclst.runtime.inference.encoder_timings import (
    Candidate,
    Record,
    Timing,
    describe_candidate,
    fastest,
    is_recent,
    is_settled,
    measure,
    read_record,
    store_record,
)
from mclst.runtime.inference.instruction_sets import gpu_multiplies, instructions_of, processor_id
from mclst.runtime.inference.providers import check_provider, flavor_of
from mclst.runtime.progress import Notify
from mclst.runtime.resources import available_cores
from mclst.runtime.versions import installed_versions

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")
"""Packages that decide an encoder's speed."""

BUILT_FIRST = ("fp16", "fp32")
"""Precisions of which TensorRT gets an engine if it has none: the first that the bundle has."""

ON_CUDA = ("fp32", "fp16")
"""ONNX Runtime's CUDA provider has no int8 products for explicit Q/DQ, and few operators in bf16."""

Open = Callable[[Candidate], Session]
"""Candidate → the encoder; raises ResourceError or BundleError."""


@dataclass(frozen=True)
class EncoderChoice:
    """What runs the encoder, and why.

    provider: of PROVIDERS; "auto" for the first that opens. lanes: tiles encoded side by side on the CPU,
    None for one per core. timings: of all candidates; () if nothing was measured. measured: the date.
    """

    provider: str
    precision: str
    lanes: int | None = None
    timings: tuple[Timing, ...] = ()
    measured: str = ""

    @property
    def name(self) -> Candidate:
        """Provider, precision and lanes."""
        return self.provider, self.precision, self.lanes

    def __str__(self) -> str:
        return describe_candidate(self.name)

    @property
    def times_fp32(self) -> float | None:
        """How many times as fast as the fastest candidate in fp32; None if that was not measured."""
        own = [t.tiles_per_second for t in self.timings if t.name == self.name]
        fp32 = [t.tiles_per_second for t in self.timings if t.precision == "fp32"]
        return own[0] / max(fp32) if own and fp32 else None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a map and its report."""
        return {
            "measured": self.measured,
            "tiles_per_second": {str(t): t.tiles_per_second for t in self.timings},
        }


@dataclass(frozen=True)
class ChoiceRequest:
    """What may be chosen.

    provider, precision: "auto", or the one to take. batch: tiles encoded at once. threads: of the CPU.
    build: whether TensorRT may build an engine. measure: whether candidates may be opened and tried.
    """

    provider: str
    precision: str
    batch: int
    threads: int
    build: bool = True
    measure: bool = True


def runs_on_cpu(provider: str) -> bool:
    """Whether a provider, or what "auto" chooses from, is on the CPU."""
    return provider in ON_CPU or not any(_is_here(name) for name in FASTEST_FIRST if name not in ON_CPU)


def device_id(provider: str) -> str:
    """Return what tells the device of an available provider from others: the processor or the GPU."""
    return processor_id() if provider in ON_CPU else str(CudaDevice().gpu)


def choose_encoder(
    bundle: Bundle,
    request: ChoiceRequest,
    open_one: Open,
    notify: Notify,
    sessions: dict[Candidate, Session],
    *,
    clock: Callable[[], datetime] | None = None,
) -> EncoderChoice:
    """Choose a provider, a precision, and the lanes of a large network on the CPU.

    Where the first two are named, or fp32 is, or the bundle has fp32 alone, nothing is measured. Otherwise
    what was measured before on such a machine decides, if it still counts (see `is_settled`); else the
    candidates are tried now, and the result is kept in the user's cache.

    Parameters
    ----------
    bundle : Bundle
    request : ChoiceRequest
    open_one : callable
    notify : callable
        Called before it takes seconds.
    sessions : dict
        Empty; what was tried and found to be the fastest is left open in it.
    clock : callable, optional
        The time, with its zone.

    Returns
    -------
    EncoderChoice

    Raises
    ------
    BundleError
        If the bundle has no encoder in the precision named.
    """
    now = datetime.now(UTC) if clock is None else clock()
    choice, names, record = _recall(bundle, request, now)
    if choice is not None:
        return choice
    if request.measure:
        notify("measuring which provider and precision run this bundle fastest here; once, for seconds")
        timings = _measure(bundle, names, request, open_one, sessions)
        if timings:
            # A record that has expired says nothing about today's drivers and clocks.
            recent = record if record is not None and is_recent(record, now) else None
            record = Record(tuple(timings), now, 1).merged(recent)
            store_record(_key(bundle, names, request), record)
    if record is None:
        precisions = _allowed(bundle, request)
        return EncoderChoice(request.provider, "fp32" if "fp32" in precisions else precisions[0])
    return _from_record(record)


def known_choice(
    bundle: Bundle, request: ChoiceRequest, *, clock: Callable[[], datetime] | None = None
) -> EncoderChoice | None:
    """Choose without measuring; None if that takes a measurement. Raises as `choose_encoder` does."""
    return _recall(bundle, request, datetime.now(UTC) if clock is None else clock())[0]


def _recall(
    bundle: Bundle, request: ChoiceRequest, now: datetime
) -> tuple[EncoderChoice | None, list[tuple[str, str]], Record | None]:
    """Return the choice if it takes no measurement, the candidates, and what was measured of them."""
    precisions = _allowed(bundle, request)
    bundle.check_precision(precisions[0])
    if precisions == ("fp32",) or "auto" not in (request.provider, request.precision):
        return EncoderChoice(request.provider, precisions[0]), [], None
    names = candidates(bundle, precisions, request)
    if len(names) < 2:
        only = names[0] if names else (request.provider, precisions[0])
        return EncoderChoice(*only), names, None
    record = read_record(_key(bundle, names, request))
    settled = record is not None and is_settled(record, now)
    return _from_record(record) if record is not None and settled else None, names, record


def _allowed(bundle: Bundle, request: ChoiceRequest) -> tuple[str, ...]:
    return bundle.precisions if request.precision == "auto" else (request.precision,)


def _from_record(record: Record) -> EncoderChoice:
    chosen = fastest(record.timings)
    return EncoderChoice(*chosen.name, record.timings, record.measured.date().isoformat())


def _key(bundle: Bundle, names: list[tuple[str, str]], request: ChoiceRequest) -> dict[str, Any]:
    """Return all that a record depends on."""
    return {
        "bundle": bundle.sha256,
        "candidates": [list(name) for name in names],
        "device": device_id(names[0][0]),
        "threads": request.threads,
        "batch": request.batch,
        "versions": installed_versions(RUNTIMES),
    }


@dataclass(frozen=True)
class NativePrecision:
    """A precision that a provider computes in here.

    instructions: of the processor, such as "AVX-512 VNNI"; "" for fp32. in_bundle: None without a bundle.
    tiles_per_second: of that bundle, None if it was not measured.
    """

    precision: str
    instructions: str
    in_bundle: bool | None = None
    tiles_per_second: float | None = None


def native_precisions(
    provider: str, bundle: Bundle | None = None, batch: int = DEFAULT_BATCH_SIZE
) -> list[NativePrecision]:
    """Describe the precisions that an available provider computes in without converting to fp32."""
    speeds: dict[tuple[str, str], float] = {}
    if bundle is not None and bundle.precisions != ("fp32",):
        request = ChoiceRequest("auto", "auto", batch, available_cores())
        names = candidates(bundle, bundle.precisions, request)
        record = read_record(_key(bundle, names, request)) if names else None
        for timing in record.timings if record else ():
            before = speeds.get(timing.name[:2], 0.0)
            speeds[timing.name[:2]] = max(before, timing.tiles_per_second)
    rows = []
    for precision in PRECISIONS:
        if provider in ON_CPU:
            instructions = instructions_of(provider, precision)
        else:
            gpu = CudaDevice().gpu
            known = provider != "cuda" or precision in ON_CUDA
            native = known and gpu_multiplies(precision, gpu.compute_capability)
            instructions = ("" if precision == "fp32" else "tensor cores") if native else None
        if instructions is not None:
            there = None if bundle is None else precision in bundle.precisions
            rows.append(NativePrecision(precision, instructions, there, speeds.get((provider, precision))))
    return rows


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


def _measure(
    bundle: Bundle,
    names: list[tuple[str, str]],
    request: ChoiceRequest,
    open_one: Open,
    sessions: dict[Candidate, Session],
) -> list[Timing]:
    def opened(name: Candidate) -> Session | None:
        bundle.encoder(name[1])  # a damaged one is no reason to take another
        try:
            return open_one(name)
        except (ResourceError, BundleError):
            return None  # such as an operator that this provider does not have

    def fewer_lanes(name: Candidate) -> Candidate | None:
        # With small networks a lane per core was the fastest wherever it was measured.
        provider, precision, now = name
        if provider not in ON_CPU or not is_heavy(bundle.encoder(precision)):
            return None
        half = (now or lanes) // 2
        return (provider, precision, half) if half else None

    side = bundle.manifest.tile.size_px
    tiles = np.random.default_rng(0).integers(0, 256, (request.batch, side, side, 3), np.uint8)
    lanes = request.batch if names[0][0] not in ON_CPU else min(request.threads, request.batch)
    return measure([(*name, None) for name in names], opened, fewer_lanes, tiles, lanes, sessions)
