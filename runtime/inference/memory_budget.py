"""How much at once: the batch and the depth of the ring that fit into a given amount of memory, found by trying."""

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

KEPT_BYTES = CACHE_BYTES + (128 << 20)
"""For what comes after the trial: the slide's decoded segments, and the map's pictures."""

FEWEST_SLOTS, MOST_SLOTS = 2, 6
BANK_SHARE = 4
"""A bank that takes more than one part in so many of the budget is held in float16, where its retriever can."""

OpenStages = Callable[[int, int], Stages]
"""(batch, slots) → stages."""


@dataclass(frozen=True)
class Fit:
    """What fits: tiles at once and batches in the ring; `text` says how it came about."""

    batch: int
    slots: int
    text: str


def fit_run(session: Session, readout: Readout, budget: int, most: int, free: int) -> Fit:
    """What fits into `budget`: of this process's memory and, on a GPU, of what was `free` there before.

    most: the largest batch. Says too in what precision the bank is held. Raises as `fit` does.
    """
    device = None if session.provider in ON_CPU else CudaDevice()

    def in_use() -> int:
        return peak_bytes() + (0 if device is None else max(0, free - device.free_bytes()))

    def open_stages(batch: int, slots: int) -> Stages:
        rows = max(readout.rows_at_once, batch)
        return session.stages(batch, group_rows=rows, on_device=False, clock=Clock(), slots=slots)

    found = fit(open_stages, budget, most=most, in_use=in_use, on_device=device is not None)
    bank = readout.settings.get("bank_precision", "float32")
    return replace(found, text=f"{found.text}; the bank in {bank}") if "k" in readout.settings else found


def device_free_bytes() -> int:
    """Of the GPU; 0 where there is none."""
    try:
        return CudaDevice().free_bytes()
    except ResourceError:
        return 0


def fit(
    open_stages: OpenStages,
    budget: int,
    *,
    most: int,
    in_use: Callable[[], int],
    on_device: bool,
) -> Fit:
    """The largest batch up to `most`, doubled from 1 while it fits, and then the deepest ring.

    Each batch is really encoded once, with a ring of FEWEST_SLOTS; a larger one is tried only where twice the growth of
    the last step would still fit. in_use: bytes in use, the most so far. on_device: whether a slot has its tiles there
    too. Raises ResourceError where not even one tile fits, naming what it takes.
    """
    room = budget - KEPT_BYTES
    batch, before, used = 0, in_use(), 0
    size = 1
    while size <= most:
        tile_bytes = _try(open_stages, size)
        used = in_use()
        if used > room:
            break
        batch, growth, before = size, used - before, used
        if size == most or used + 2 * growth > room:
            break
        size = min(2 * size, most)
    if not batch:
        raise ResourceError(
            f"a memory budget of {_gb(budget)} is too small: one tile at a time takes {_gb(used + KEPT_BYTES)}, of which "
            f"{_gb(KEPT_BYTES)} are kept for the slide and its pictures; give a larger --memory-budget"
        )
    each = batch * tile_bytes * (2 if on_device else 1)
    slots = max(FEWEST_SLOTS, min(MOST_SLOTS, FEWEST_SLOTS + (room - before) // each))
    text = (
        f"memory budget {_gb(budget)}: batches of {batch}, a ring of {slots}; {_gb(before)} in use when tried, "
        f"{_gb(KEPT_BYTES)} kept for the slide and its pictures"
    )
    return Fit(batch, slots, text)


def use_fp16_bank(rows: int, genes: int, budget: int | None) -> bool:
    """Whether a bank's expression [rows, genes] is large enough against a budget to be held in float16."""
    return budget is not None and 4 * rows * genes * BANK_SHARE > budget


def _try(open_stages: OpenStages, size: int) -> int:
    """Encode a batch of `size` tiles; bytes of a tile."""
    stages = open_stages(size, FEWEST_SLOTS)
    try:
        shape = stages.tiles(0).shape
        encode_now(stages, np.zeros((size, *shape[1:]), np.uint8))
    finally:
        stages.close()
    return int(np.prod(shape[1:]))


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"
