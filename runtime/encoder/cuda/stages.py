"""The stages of an encoder on a CUDA device: pinned tiles up on one stream, the encoder on a second, results on a third."""

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

SLOTS = 6
"""Three are read while one is copied, one encoded and one gathered."""


class Runner(Protocol):
    """An encoder that always runs a full batch of `batch` tiles, so that a row never depends on how full its batch is."""

    batch: int

    def prepare(self, stream: int, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Get ready to read tiles at `inputs`, a device address per slot, and to write to `outputs`."""

    def enqueue(self, slot: int) -> None:
        """Put a full batch of a slot under way on the stream."""

    def close(self) -> None:
        """Give device memory back; the stream is idle."""


class DeviceGroup:
    """Rows of embeddings on the device, as `__cuda_array_interface__` tells; nothing is pending on them."""

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
    """Work between two events of a stream; events None once it is done."""

    stage: str
    start: Any
    end: Any


class DeviceStages:
    """Stages on a CUDA device.

    Times between events on the device go to the clock as "upload", "encode", and of embeddings "download" to the host
    or "gather" on the device.
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
        """Take all memory.

        tile: [H, W, 3]. width: D. group_rows: the most rows of a group. on_device: leave groups there, for retrieval on
        the device, rather than in pinned memory. Raises ResourceError where the device has no room.
        """
        self.slots = slots
        self._device, self._runner, self._clock = device, runner, clock
        self._tile, self._width, self._on_device = tile, width, on_device
        self._tile_bytes, self._row_bytes = int(np.prod(tile)), 4 * width
        self._closed = False
        self._spare: list[Any] = []
        self._under_way: deque[_Ticket] = deque()
        self._streams: list[int] = []
        self._pinned: list[NDArray[np.uint8]] = []
        self._memory: list[int] = []
        try:
            self._take(slots, group_rows)
        except BaseException:
            self.close()
            raise

    def _take(self, slots: int, group_rows: int) -> None:
        device, batch = self._device, self._runner.batch
        for _ in range(3):
            self._streams.append(device.stream())
        self._up, self._compute, self._down = self._streams
        tiles = [self._pin(batch * self._tile_bytes) for _ in range(slots)]
        self._tiles = [memory.reshape(batch, *self._tile) for memory in tiles]
        self._inputs = [self._reserve(batch * self._tile_bytes) for _ in range(slots)]
        self._outputs = [self._reserve(batch * self._row_bytes) for _ in range(slots)]
        for address in self._inputs:
            device.zero(address, batch * self._tile_bytes, self._up)
        zeroed = self._recorded(self._up)
        device.reach(zeroed)
        self._spare.append(zeroed)
        size = group_rows * self._row_bytes
        if self._on_device:
            self._groups = [self._reserve(size) for _ in range(self.groups)]
        else:
            pinned = [self._pin(size) for _ in range(self.groups)]
            self._host_groups = [p.view(np.float32).reshape(group_rows, self._width) for p in pinned]
        self._runner.prepare(self._compute, self._inputs, self._outputs)

    def tiles(self, slot: int) -> NDArray[np.uint8]:
        """See `Stages`."""
        return self._tiles[slot]

    def upload(self, slot: int, n: int, after: Sequence[Any]) -> _Ticket:
        """See `Stages`."""
        self.settle()
        ticket = self._begin("upload", self._up, after)
        self._device.copy_up(self._inputs[slot], self._tiles[slot][:n], self._up)
        return self._end(ticket, self._up)

    def encode(self, slot: int, n: int, after: Sequence[Any]) -> _Ticket:
        """See `Stages`."""
        ticket = self._begin("encode", self._compute, after)
        self._runner.enqueue(slot)
        return self._end(ticket, self._compute)

    def gather(self, slot: int, n: int, group: int, at: int, after: Sequence[Any]) -> _Ticket:
        """See `Stages`."""
        ticket = self._begin("gather" if self._on_device else "download", self._down, after)
        source = self._outputs[slot]
        if self._on_device:
            to = self._groups[group] + at * self._row_bytes
            self._device.copy_across(to, source, n * self._row_bytes, self._down)
        else:
            self._device.copy_down(self._host_groups[group][at : at + n], source, self._down)
        return self._end(ticket, self._down)

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
        self._clock[ticket.stage] = self._clock.get(ticket.stage, 0.0) + self._device.seconds(
            ticket.start, ticket.end
        )
        self._spare += [ticket.start, ticket.end]
        ticket.start = ticket.end = None
        return True

    def wait(self, ticket: _Ticket) -> None:
        """See `Stages`."""
        if ticket.end is not None:
            self._device.reach(ticket.end)
            self.done(ticket)

    def settle(self) -> None:
        """Tell the clock of all that is done, oldest first."""
        while self._under_way and self.done(self._under_way[0]):
            self._under_way.popleft()

    def close(self) -> None:
        """See `Stages`. Where the device failed, it has said so already, and its memory ends with the process."""
        if self._closed:
            return
        self._closed = True
        device = self._device
        with suppress(ResourceError):
            for stream in self._streams:
                device.end_stream(stream)
            for ticket in self._under_way:
                self.done(ticket)
            self._runner.close()
            for event in self._spare:
                device.end_event(event)
            for address in self._memory:
                device.free(address)
            for memory in self._pinned:
                device.unpin(memory)

    def _begin(self, stage: str, stream: int, after: Sequence[Any]) -> _Ticket:
        for ticket in after:
            if ticket.end is not None:
                self._device.hold(stream, ticket.end)
        return _Ticket(stage, self._recorded(stream), None)

    def _end(self, ticket: _Ticket, stream: int) -> _Ticket:
        ticket.end = self._recorded(stream)
        self._under_way.append(ticket)
        return ticket

    def _recorded(self, stream: int) -> Any:
        event = self._spare.pop() if self._spare else self._device.event()
        self._device.record(event, stream)
        return event

    def _pin(self, nbytes: int) -> NDArray[np.uint8]:
        self._pinned.append(self._device.pinned(nbytes))
        return self._pinned[-1]

    def _reserve(self, nbytes: int) -> int:
        self._memory.append(self._device.allocate(nbytes))
        return self._memory[-1]
