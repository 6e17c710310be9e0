"""How many tiles a slow encoder takes at once: tried once on a machine, and remembered."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import numpy as np

from mclst.runtime.encoder.cpu_stages import CpuSession
from mclst.runtime.providers.candidates import device_id
from mclst.runtime.providers.timings import Record, Timing, is_recent, read_record, store_record

BATCH_SECONDS = 5.0
"""What a batch may take: as much is lost with a process, and progress is as slow."""


def prompt_batch(session: CpuSession, encoder_sha256: str, precision: str, most: int) -> int:
    """Halve a batch until it takes BATCH_SECONDS, but leave each lane a tile.

    Parameters
    ----------
    session : CpuSession
        Tried only if its network has many weights and was not tried here before.
    encoder_sha256, precision : str
        Of its graph.
    most : int
        The largest batch.
    """
    lanes = session.lanes
    if not session.heavy or most <= lanes:
        return most
    key: dict[str, Any] = {
        "encoder": encoder_sha256,
        "tiles": lanes,
        "device": device_id(session.provider),
        "engine": session.engine,
    }
    now, record = datetime.now(UTC), read_record(key)
    if record is None or not is_recent(record, now):
        started = time.perf_counter()
        session.encode(np.zeros((lanes, *session.tile), np.uint8))
        seconds = max(time.perf_counter() - started, 1e-9)
        # A batch decides the last bits of a map, so the next run takes the same one.
        record = Record((Timing(session.provider, precision, lanes / seconds),), now)
        store_record(key, record)
    while most > lanes and most / record.timings[0].tiles_per_second > BATCH_SECONDS:
        most = max(lanes, most // 2)
    return most
