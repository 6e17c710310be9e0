"""Batch size and ring depth that fit into a memory budget, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mclst.runtime.choices import ON_CPU
from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.ring import Stages, encode_now
from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import ResourceError
from mclst.runtime.inference.readout import Readout
from mclst.runtime.progress import Clock
from mclst.runtime.resources import peak_bytes
from mclst.runtime.slide.segment_cache import CACHE_BYTES

RESERVED_BYTES = CACHE_BYTES + (128 << 20)
"""Reserved for what follows the trial: decoded segments of the slide, and pictures."""

FEWEST_SLOTS, MOST_SLOTS = 2, 6
BANK_SHARE = 4
"""A bank larger than the budget divided by this is held in float16, if the retriever can."""

OpenStages = Callable[[int, int], Stages]
"""(batch, slots) → stages."""


@dataclass(frozen=True)
class Fit:
    """What fits: tiles per batch and batches in the ring; text: the reason, for the user."""

    batch: int
    slots: int
    text: str


def fit_run(session: Session, readout: Readout, budget: int, max_batch: int, free: int) -> Fit:
    """Return what fits into `budget` bytes of host and GPU memory; free: of the GPU before the run."""
    device = None if session.provider in ON_CPU else CudaDevice()

    def in_use() -> int:
        return peak_bytes() + (0 if device is None else max(0, free - device.free_bytes()))

    def open_stages(batch: int, slots: int) -> Stages:
        rows = max(readout.rows_at_once, batch)
        return session.stages(batch, group_rows=rows, on_device=False, clock=Clock(), slots=slots)

    result = fit(open_stages, budget, max_batch=max_batch, in_use=in_use, on_device=device is not None)
    bank = readout.settings.get("bank_precision", "float32")
    return replace(result, text=f"{result.text}; the bank in {bank}") if "k" in readout.settings else result


def device_free_bytes() -> int:
    """Return the GPU's free memory; 0 without a GPU."""
    try:
        return CudaDevice().free_bytes()
    except ResourceError:
        return 0


def fit(
    open_stages: OpenStages,
    budget: int,
    *,
    max_batch: int,
    in_use: Callable[[], int],
    on_device: bool,
) -> Fit:
    """Find the largest batch, doubled from 1 while it fits, then the deepest ring.

    Each batch is encoded once with a ring of FEWEST_SLOTS. A larger one is tried only if twice the growth of
    the last step would still fit.

    Parameters
    ----------
    open_stages : callable
    budget : int
        Bytes.
    max_batch : int
        Largest batch to try.
    in_use : callable
        Returns the peak of bytes in use.
    on_device : bool
        Whether a slot also has its tiles on the device.

    Raises
    ------
    ResourceError
        If not even one tile fits, naming what it takes.
    """
    room = budget - RESERVED_BYTES
    batch, before, used = 0, in_use(), 0
    size = 1
    while size <= max_batch:
        tile_bytes = _try(open_stages, size)
        used = in_use()
        if used > room:
            break
        batch, growth, before = size, used - before, used
        if size == max_batch or used + 2 * growth > room:
            break
        size = min(2 * size, max_batch)
    if not batch:
        raise ResourceError(
            f"a memory budget of {_gb(budget)} is too small: one tile at a time takes "
            f"{_gb(used + RESERVED_BYTES)}, of which "
            f"{_gb(RESERVED_BYTES)} are reserved for the slide and its pictures; give a larger "
            "--memory-budget"
        )
    slot_bytes = batch * tile_bytes * (2 if on_device else 1)
    slots = max(FEWEST_SLOTS, min(MOST_SLOTS, FEWEST_SLOTS + (room - before) // slot_bytes))
    text = (
        f"memory budget {_gb(budget)}: batches of {batch}, a ring of {slots}; {_gb(before)} in use when "
        f"tried, {_gb(RESERVED_BYTES)} reserved for the slide and its pictures"
    )
    return Fit(batch, slots, text)


def use_fp16_bank(rows: int, genes: int, budget: int | None) -> bool:
    """Return whether a bank's expression [rows, genes] is too large for a budget in float32."""
    return budget is not None and 4 * rows * genes * BANK_SHARE > budget


def _try(open_stages: OpenStages, size: int) -> int:
    """Encode a batch of `size` tiles; return the bytes of a tile."""
    stages = open_stages(size, FEWEST_SLOTS)
    try:
        shape = stages.tiles(0).shape
        encode_now(stages, np.zeros((size, *shape[1:]), np.uint8))
    finally:
        stages.close()
    return int(np.prod(shape[1:]))


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"
