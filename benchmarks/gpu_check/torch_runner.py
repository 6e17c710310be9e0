"""torch in the ring, replayed as a CUDA graph: the encoder where no engine can be had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.cuda.session import DeviceSession

WARM_UP = 3
"""Runs before the capture, in which cuDNN chooses its algorithms."""


class _View:
    """Device memory for torch."""

    def __init__(self, address: int, shape: tuple[int, ...], typestr: str) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (address, False),
            "version": 3,
            "strides": None,
        }


class TorchRunner:
    """A `Runner` of full batches. embed: tiles uint8 [n, H, W, 3] → float32 [n, D], both on the device."""

    stream = None

    def __init__(
        self, embed: Callable[[Any], Any], batch: int, tile: tuple[int, ...], width: int, *, graph: bool
    ) -> None:
        self.batch = batch
        self._embed, self._tile, self._width, self._captures = embed, tile, width, graph
        self._graph: Any = None

    def prepare(self, stream: int, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """See `Runner`."""
        self._on = torch.cuda.ExternalStream(stream)  # type: ignore[no-untyped-call]
        shape = (self.batch, *self._tile)
        self._inputs = [torch.as_tensor(_View(a, shape, "|u1"), device="cuda") for a in inputs]
        self._outputs = [
            torch.as_tensor(_View(a, (self.batch, self._width), "<f4"), device="cuda") for a in outputs
        ]
        with torch.inference_mode(), torch.cuda.stream(self._on):
            self._input = torch.zeros(shape, dtype=torch.uint8, device="cuda")
            for _ in range(WARM_UP):
                self._output = self._embed(self._input)
            if self._captures:
                self._on.synchronize()
                self._graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._graph, stream=self._on):
                    self._output = self._embed(self._input)

    def enqueue(self, slot: int) -> None:
        """See `Runner`."""
        with torch.inference_mode(), torch.cuda.stream(self._on):
            if self._graph is None:
                self._outputs[slot].copy_(self._embed(self._inputs[slot]))
                return
            self._input.copy_(self._inputs[slot])
            self._graph.replay()
            self._outputs[slot].copy_(self._output)

    def close(self) -> None:
        """See `Runner`."""
        self._graph = None


def torch_session(
    device: CudaDevice, embed: Callable[[Any], Any], tile: tuple[int, ...], width: int, *, graph: bool
) -> DeviceSession:
    """A session on torch, for measurements."""
    kind = "CUDA graph" if graph else "eager"
    return DeviceSession(
        device,
        lambda batch: TorchRunner(embed, batch, tile, width, graph=graph),
        provider="torch",
        engine=f"torch {torch.__version__}, {kind}",
        tile=tile,
        width=width,
    )
