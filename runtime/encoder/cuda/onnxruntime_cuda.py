"""ONNX Runtime's CUDA provider in the ring: tiles and embeddings stay where the ring put them, by IO binding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.cuda.session import DeviceSession
from mclst.runtime.encoder.onnxruntime_cpu import check_encoder, check_onnxruntime, open_graph
from mclst.runtime.encoder.session import INPUT
from mclst.runtime.errors import ResourceError


class OnnxRunner:
    """A graph on ONNX Runtime's CUDA provider, bound to the ring's memory and enqueued on the ring's stream."""

    def __init__(self, path: Path, batch: int) -> None:
        self.batch = batch
        self._path = path
        self._bound: list[Any] = []
        self._session: Any = None

    def prepare(self, stream: int, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """See `Runner`."""
        import onnxruntime

        self._session = open_graph(self._path, "cuda", options_of_cuda=cuda_options(stream))
        output, tile, width = check_encoder(self._session, self._path)
        self._options = onnxruntime.RunOptions()
        # Without this every run ends by waiting for the stream.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        for source, to in zip(inputs, outputs, strict=True):
            binding = self._session.io_binding()
            binding.bind_input(INPUT, "cuda", 0, np.uint8, (self.batch, *tile), source)
            binding.bind_output(output, "cuda", 0, np.float32, (self.batch, width), to)
            self._bound.append(binding)

    def enqueue(self, slot: int) -> None:
        """See `Runner`."""
        try:
            self._session.run_with_iobinding(self._bound[slot], self._options)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            reason = " ".join(str(error).split())[:200]
            raise ResourceError(
                f"ONNX Runtime's CUDA provider failed ({reason}); give a smaller --batch-size or use --provider cpu"
            ) from error

    def close(self) -> None:
        """See `Runner`."""
        self._bound.clear()
        self._session = None


def cuda_options(stream: int | None) -> dict[str, str]:
    """Of ONNX Runtime's CUDA provider: float32 is float32, and work goes to `stream` where one is given."""
    options = {"device_id": "0", "use_tf32": "0"}
    return options if stream is None else {**options, "user_compute_stream": str(stream)}


def open_onnx_cuda(path: Path) -> DeviceSession:
    """The encoder at `path` on ONNX Runtime's CUDA provider.

    Raises ResourceError where there is no such provider, device or cuda-bindings, or the provider does not start;
    BundleError where the graph is not an encoder.
    """
    check_onnxruntime("cuda")
    import onnxruntime

    device = CudaDevice()
    _, tile, width = check_encoder(open_graph(path, "cuda", options_of_cuda=cuda_options(None)), path)
    return DeviceSession(
        device,
        lambda batch: OnnxRunner(path, batch),
        provider="cuda",
        engine=f"onnxruntime {onnxruntime.__version__}, {device.gpu.name}",
        tile=tile,
        width=width,
    )
