"""ONNX Runtime's CUDA provider in the ring, by IO binding to the ring's device memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.cuda.session import DeviceSession
from mclst.runtime.encoder.onnxruntime_cpu import check_encoder, check_onnxruntime, open_graph
from mclst.runtime.encoder.session import INPUT
from mclst.runtime.errors import ResourceError


class OnnxEncoder:
    """The encoder at `path` in one session, for batches of any size, on a stream of its own.

    A session has one stream, searches for algorithms and holds all weights, so batches share one.
    """

    def __init__(self, device: CudaDevice, path: Path) -> None:
        """Raises ResourceError if the provider does not start, BundleError if the graph is not an encoder."""
        self.stream = device.create_stream()
        self._session: list[Any] = []
        # Also at the end of the process. The session refers to the stream, so it goes first.
        self._release = weakref.finalize(self, _release, self._session, device, self.stream)
        self._session.append(open_graph(path, "cuda", cuda_options=cuda_options(self.stream)))
        self.output, self.tile, self.width = check_encoder(self.session, path)

    @property
    def session(self) -> Any:
        """The session of ONNX Runtime."""
        return self._session[0]

    def close(self) -> None:
        """End the session, then its stream; all its runners are closed."""
        self._release()


def _release(session: list[Any], device: CudaDevice, stream: int) -> None:
    session.clear()
    device.destroy_stream(stream)


class OnnxRunner:
    """A `Runner` of batches of one size through an encoder that is open already."""

    def __init__(self, encoder: OnnxEncoder, batch: int) -> None:
        self.batch, self.stream = batch, encoder.stream
        self._encoder = encoder
        self._bindings: list[Any] = []

    def prepare(self, stream: int, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """See `Runner`."""
        import onnxruntime

        encoder = self._encoder
        self._options = onnxruntime.RunOptions()
        # By default every run ends with a synchronization of the stream.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        for source, target in zip(inputs, outputs, strict=True):
            binding = encoder.session.io_binding()
            binding.bind_input(INPUT, "cuda", 0, np.uint8, (self.batch, *encoder.tile), source)
            binding.bind_output(encoder.output, "cuda", 0, np.float32, (self.batch, encoder.width), target)
            self._bindings.append(binding)

    def enqueue(self, slot: int) -> None:
        """See `Runner`."""
        try:
            self._encoder.session.run_with_iobinding(self._bindings[slot], self._options)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            reason = " ".join(str(error).split())[:200]
            raise ResourceError(
                f"ONNX Runtime's CUDA provider failed ({reason}); "
                "give a smaller --batch-size or use --provider cpu"
            ) from error

    def close(self) -> None:
        """See `Runner`."""
        self._bindings.clear()


def cuda_options(stream: int) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider: no TF32, and work on `stream`."""
    return {
        "device_id": "0",
        "use_tf32": "0",
        # The default search tries every algorithm on each new batch size, and may choose another in each run.
        "cudnn_conv_algo_search": "HEURISTIC",
        "user_compute_stream": str(stream),
    }


def open_onnx_cuda(path: Path) -> DeviceSession:
    """Open the encoder at `path` on ONNX Runtime's CUDA provider.

    Raises ResourceError without the provider, a device or cuda-bindings, or if the provider does not start;
    BundleError if the graph is not an encoder.
    """
    check_onnxruntime("cuda")
    import onnxruntime

    device = CudaDevice()
    encoder = OnnxEncoder(device, path)
    return DeviceSession(
        device,
        lambda batch: OnnxRunner(encoder, batch),
        provider="cuda",
        engine=f"onnxruntime {onnxruntime.__version__}, {device.gpu.name}",
        tile=encoder.tile,
        width=encoder.width,
    )
