"""ONNX Runtime's CUDA provider in the ring, by IO binding to the ring's device memory."""

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
    """A `Runner` on ONNX Runtime's CUDA provider."""

    def __init__(self, path: Path, batch: int) -> None:
        self.batch = batch
        self._path = path
        self._bindings: list[Any] = []
        self._session: Any = None

    def prepare(self, stream: int, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """See `Runner`."""
        import onnxruntime

        self._session = open_graph(self._path, "cuda", cuda_options=cuda_options(stream))
        output, tile, width = check_encoder(self._session, self._path)
        self._options = onnxruntime.RunOptions()
        # By default every run ends with a synchronization of the stream.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        for source, target in zip(inputs, outputs, strict=True):
            binding = self._session.io_binding()
            binding.bind_input(INPUT, "cuda", 0, np.uint8, (self.batch, *tile), source)
            binding.bind_output(output, "cuda", 0, np.float32, (self.batch, width), target)
            self._bindings.append(binding)

    def enqueue(self, slot: int) -> None:
        """See `Runner`."""
        try:
            self._session.run_with_iobinding(self._bindings[slot], self._options)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            reason = " ".join(str(error).split())[:200]
            raise ResourceError(
                f"ONNX Runtime's CUDA provider failed ({reason}); "
                "give a smaller --batch-size or use --provider cpu"
            ) from error

    def close(self) -> None:
        """See `Runner`."""
        self._bindings.clear()
        self._session = None


def cuda_options(stream: int | None) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider: no TF32, and work on `stream` unless None."""
    # The default search tries every algorithm on each new batch size, and may choose another in each run.
    options = {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    return options if stream is None else {**options, "user_compute_stream": str(stream)}


def open_onnx_cuda(path: Path) -> DeviceSession:
    """Open the encoder at `path` on ONNX Runtime's CUDA provider.

    Raises ResourceError without the provider, a device or cuda-bindings, or if the provider does not start;
    BundleError if the graph is not an encoder.
    """
    check_onnxruntime("cuda")
    import onnxruntime

    device = CudaDevice()
    _, tile, width = check_encoder(open_graph(path, "cuda", cuda_options=cuda_options(None)), path)
    return DeviceSession(
        device,
        lambda batch: OnnxRunner(path, batch),
        provider="cuda",
        engine=f"onnxruntime {onnxruntime.__version__}, {device.gpu.name}",
        tile=tile,
        width=width,
    )
