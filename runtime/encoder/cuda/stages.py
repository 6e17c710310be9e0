"""`Stages` on a CUDA device: uploads, encoder and results each have their own stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.ring import GROUPS
from mclst.runtime.errors import ResourceError
from mclst.runtime.progress import Clock

# Three batches are read while one is uploaded, one encoded and one gathered.
SLOTS = 6


class Runner(Protocol):
    """An encoder that always runs full batches, so that results do not depend on how full a batch is."""

    batch: int

    @property
    def stream(self) -> int | None:
        """Where it runs, if it has a stream of its own; None to run on the stages'."""

    def prepare(self, stream: int, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Prepare to read tiles from `inputs` and write to `outputs`, one device address per slot."""

    def enqueue(self, slot: int) -> None:
        """Submit a full batch of a slot to the stream."""

    def close(self) -> None:
        """Free device memory; the stream is idle."""


class DeviceGroup:
    """Embeddings on the device, ready to read, by `__cuda_array_interface__`."""

    def __init__(self, address: int, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<f4",
            "data": (address, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }


@dataclass
class _Ticket:
    """Work between two events of a stream; both are None once it is done."""

    stage: str
    start: Any
    end: Any


class DeviceStages:
    """Stages on a CUDA device.

    The clock receives device times as "upload", "encode", and either "download" (to the host) or "gather".
    """

    groups = GROUPS

    def __init__(
        self,
        device: CudaDevice,
        runner: Runner,
        *,
        tile: tuple[int, ...],
        width: int,
        group_rows: int,
        on_device: bool,
        clock: Clock,
        slots: int = SLOTS,
    ) -> None:
        """Allocate all memory.

        tile: [H, W, 3]. width: D. group_rows: most rows of a group. on_device: keep groups on the device for
        retrieval there, not in pinned memory. Raises ResourceError if the device has too little memory.
        """
        self.slots, self.batch = slots, runner.batch
        self._device, self._runner, self._clock = device, runner, clock
        self._tile, self._width, self._on_device = tile, width, on_device
        self._tile_bytes, self._row_bytes = int(np.prod(tile)), 4 * width
        self._closed = False
        self._free_events: list[Any] = []
        self._pending: deque[_Ticket] = deque()
        self._streams: list[int] = []
        self._pinned: list[NDArray[np.uint8]] = []
        self._memory: list[int] = []
        try:
            self._allocate(slots, group_rows)
        except BaseException:
            self.close()
            raise

    def _allocate(self, slots: int, group_rows: int) -> None:
        device, batch = self._device, self._runner.batch
        self._upload_stream, self._download_stream = self._open_stream(), self._open_stream()
        runs_on = self._runner.stream
        self._compute_stream = self._open_stream() if runs_on is None else runs_on
        tiles = [self._pin(batch * self._tile_bytes) for _ in range(slots)]
        self._tiles = [memory.reshape(batch, *self._tile) for memory in tiles]
        self._inputs = [self._reserve(batch * self._tile_bytes) for _ in range(slots)]
        self._outputs = [self._reserve(batch * self._row_bytes) for _ in range(slots)]
        for address in self._inputs:
            device.zero(address, batch * self._tile_bytes, self._upload_stream)
        zeroed = self._record_event(self._upload_stream)
        device.synchronize(zeroed)
        self._free_events.append(zeroed)
        size = group_rows * self._row_bytes
        if self._on_device:
            self._groups = [self._reserve(size) for _ in range(self.groups)]
        else:
            pinned = [self._pin(size) for _ in range(self.groups)]
            self._host_groups = [p.view(np.float32).reshape(group_rows, self._width) for p in pinned]
        self._runner.prepare(self._compute_stream, self._inputs, self._outputs)

    def tiles(self, slot: int) -> NDArray[np.uint8]:
        """See `Stages`."""
        return self._tiles[slot]

    def upload(self, slot: int, n: int, after: Sequence[Any]) -> _Ticket:
        """See `Stages`."""
        self.settle()
        ticket = self._begin("upload", self._upload_stream, after)
        self._device.copy_to_device(self._inputs[slot], self._tiles[slot][:n], self._upload_stream)
        return self._end(ticket, self._upload_stream)

    def encode(self, slot: int, n: int, after: Sequence[Any]) -> _Ticket:
        """See `Stages`."""
        ticket = self._begin("encode", self._compute_stream, after)
        self._runner.enqueue(slot)
        return self._end(ticket, self._compute_stream)

    def gather(self, slot: int, n: int, group: int, at: int, after: Sequence[Any]) -> _Ticket:
        """See `Stages`."""
        ticket = self._begin("gather" if self._on_device else "download", self._download_stream, after)
        source = self._outputs[slot]
        if self._on_device:
            target = self._groups[group] + at * self._row_bytes
            self._device.copy_on_device(target, source, n * self._row_bytes, self._download_stream)
        else:
            self._device.copy_to_host(self._host_groups[group][at : at + n], source, self._download_stream)
        return self._end(ticket, self._download_stream)

    def group(self, group: int, n: int) -> Any:
        """See `Stages`."""
        if self._on_device:
            return DeviceGroup(self._groups[group], (n, self._width))
        return self._host_groups[group][:n]

    def done(self, ticket: _Ticket) -> bool:
        """See `Stages`."""
        if ticket.end is None:
            return True
        if not self._device.done(ticket.end):
            return False
        self._clock[ticket.stage] = self._clock.get(ticket.stage, 0.0) + self._device.elapsed(
            ticket.start, ticket.end
        )
        self._free_events += [ticket.start, ticket.end]
        ticket.start = ticket.end = None
        return True

    def wait(self, ticket: _Ticket) -> None:
        """See `Stages`."""
        if ticket.end is not None:
            self._device.synchronize(ticket.end)
            self.done(ticket)

    def settle(self) -> None:
        """Add the times of finished work to the clock, oldest first."""
        while self._pending and self.done(self._pending[0]):
            self._pending.popleft()

    def close(self) -> None:
        """See `Stages`. Errors were reported before; memory of a failed device ends with the process."""
        if self._closed:
            return
        self._closed = True
        device = self._device
        with suppress(ResourceError):
            for stream in {*self._streams, *filter(None, [self._runner.stream])}:
                device.wait(stream)
            for ticket in self._pending:
                self.done(ticket)
            # Its session, context or graph may refer to the streams, so it goes before them.
            self._runner.close()
            for event in self._free_events:
                device.destroy_event(event)
            for stream in self._streams:
                device.destroy_stream(stream)
            for address in self._memory:
                device.free(address)
            for memory in self._pinned:
                device.free_pinned(memory)

    def _begin(self, stage: str, stream: int, after: Sequence[Any]) -> _Ticket:
        for ticket in after:
            if ticket.end is not None:
                self._device.stream_wait(stream, ticket.end)
        return _Ticket(stage, self._record_event(stream), None)

    def _end(self, ticket: _Ticket, stream: int) -> _Ticket:
        ticket.end = self._record_event(stream)
        self._pending.append(ticket)
        return ticket

    def _record_event(self, stream: int) -> Any:
        event = self._free_events.pop() if self._free_events else self._device.create_event()
        self._device.record(event, stream)
        return event

    def _open_stream(self) -> int:
        self._streams.append(self._device.create_stream())
        return self._streams[-1]

    def _pin(self, nbytes: int) -> NDArray[np.uint8]:
        self._pinned.append(self._device.allocate_pinned(nbytes))
        return self._pinned[-1]

    def _reserve(self, nbytes: int) -> int:
        self._memory.append(self._device.allocate(nbytes))
        return self._memory[-1]
