"""Which provider, precision and lanes run a bundle's encoder: those named, or the fastest measured here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.choices import ON_CPU, PRECISIONS
from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.session import DEFAULT_BATCH_SIZE, Session
from mclst.runtime.errors import BundleError, ResourceError
from mclst.runtime.progress import Notify
from mclst.runtime.providers.candidates import (
    ON_CUDA,
    ChoiceRequest,
    candidates,
    device_id,
    expected_order,
    fewer_lanes,
    lanes_of,
)
from mclst.runtime.providers.instruction_sets import gpu_multiplies, instructions_of
from mclst.runtime.providers.timings import (
    Candidate,
    Record,
    Timing,
    describe_candidate,
    fastest,
    is_recent,
    not_settled,
    read_record,
    store_record,
)
from mclst.runtime.providers.trials import Trial, is_worth_trying, measure
from mclst.runtime.versions import installed_versions

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")
"""Packages that decide an encoder's speed."""

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


def choose_encoder(
    bundle: Bundle,
    request: ChoiceRequest,
    open_one: Open,
    notify: Notify,
    sessions: dict[Candidate, Session],
    *,
    run_tiles: int | None = None,
    clock: Callable[[], datetime] | None = None,
) -> EncoderChoice:
    """Choose a provider, a precision, and the lanes of a large network on the CPU.

    Where the first two are named, or fp32 is, or the bundle has fp32 alone, nothing is measured. Otherwise
    the fastest measured here is taken. What is not settled yet (see `not_settled`) is tried now, as far as
    the run's length allows, and the result is kept in the user's cache: later runs try the rest.

    Parameters
    ----------
    bundle : Bundle
    request : ChoiceRequest
    open_one : callable
    notify : callable
        Called before it takes seconds.
    sessions : dict
        Empty; what was tried and found to be the fastest is left open in it.
    run_tiles : int, optional
        How many tiles the run encodes, by which trying is limited (see `time_limit`); None for no limit.
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
    recalled = _recall(bundle, request, run_tiles, now)
    if recalled.choice is not None:
        return recalled.choice
    record = recalled.record
    if request.measure:
        notify("trying which provider and precision run this bundle fastest here")
        # A record that has expired says nothing about today's drivers and clocks.
        recent = record if record is not None and is_recent(record, now) else None
        trial = _trial(bundle, recalled.names, request, open_one, run_tiles)
        timings, refused = measure(recalled.to_try, trial, sessions, recent.known if recent else ())
        if timings:
            record = Record(tuple(timings), now, tuple(refused)).merged(recent)
            store_record(_key(bundle, recalled.names, request), record)
    if record is None:
        precisions = _allowed(bundle, request)
        return EncoderChoice(request.provider, "fp32" if "fp32" in precisions else precisions[0])
    return _from_record(record)


def known_choice(
    bundle: Bundle, request: ChoiceRequest, *, clock: Callable[[], datetime] | None = None
) -> EncoderChoice | None:
    """Choose without measuring; None if that takes a measurement. Raises as `choose_encoder` does."""
    return _recall(bundle, request, None, datetime.now(UTC) if clock is None else clock()).choice


@dataclass(frozen=True)
class _Recalled:
    """What is known without measuring.

    choice: None if it takes a measurement. names: the candidates. record: of what was measured before, if
    anything was. to_try: in order.
    """

    choice: EncoderChoice | None
    names: list[tuple[str, str]]
    record: Record | None = None
    to_try: Sequence[Candidate] = ()


def _recall(bundle: Bundle, request: ChoiceRequest, run_tiles: int | None, now: datetime) -> _Recalled:
    precisions = _allowed(bundle, request)
    bundle.check_precision(precisions[0])
    if precisions == ("fp32",) or "auto" not in (request.provider, request.precision):
        return _Recalled(EncoderChoice(request.provider, precisions[0]), [])
    names = candidates(bundle, precisions, request)
    if len(names) < 2:
        only = names[0] if names else (request.provider, precisions[0])
        return _Recalled(EncoderChoice(*only), names)
    record = read_record(_key(bundle, names, request))
    if record is None or not is_recent(record, now):
        return _Recalled(None, names, record, expected_order(names))
    choice = _from_record(record)
    lanes = lanes_of(names, request)
    due = not_settled(record, [(*name, None) for name in names], now)
    fewer = fewer_lanes(bundle, choice.name, lanes)
    if fewer is not None and fewer not in record.known:
        due.append(fewer)
    speed = max(t.tiles_per_second for t in record.timings)
    if not due or not is_worth_trying(lanes, speed, run_tiles):
        return _Recalled(choice, names, record)
    return _Recalled(None, names, record, list(dict.fromkeys([choice.name, *due])))


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
        request = ChoiceRequest("auto", "auto", batch)
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


def _trial(
    bundle: Bundle,
    names: list[tuple[str, str]],
    request: ChoiceRequest,
    open_one: Open,
    run_tiles: int | None,
) -> Trial:
    def opened(name: Candidate) -> Session | None:
        bundle.encoder(name[1])  # a damaged one is no reason to take another
        try:
            return open_one(name)
        except (ResourceError, BundleError):
            return None  # such as an operator that this provider does not have

    side = bundle.manifest.tile.size_px
    lanes = lanes_of(names, request)
    tiles = np.random.default_rng(0).integers(0, 256, (request.batch, side, side, 3), np.uint8)
    return Trial(opened, lambda name: fewer_lanes(bundle, name, lanes), tiles, lanes, run_tiles)
