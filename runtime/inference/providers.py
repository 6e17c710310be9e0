"""What can run an encoder here, and the choice among it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.cuda.onnxruntime_cuda import open_onnx_cuda
from mclst.runtime.encoder.onnxruntime_cpu import OnnxSession, check_onnxruntime
from mclst.runtime.encoder.openvino import OpenVinoSession, openvino
from mclst.runtime.encoder.session import AT_ONCE, Session
from mclst.runtime.encoder.tensorrt.engine_cache import EngineRequest, check_target, open_engine
from mclst.runtime.encoder.tensorrt.library import Flavour, load_library
from mclst.runtime.encoder.tensorrt.session import open_tensorrt
from mclst.runtime.errors import ResourceError

FASTEST_FIRST = ("tensorrt", "tensorrt-rtx", "cuda", "cpu", "openvino")
"""In fp32 the last two are about as fast as each other; only the last runs bf16."""
PROVIDERS = ("auto", *FASTEST_FIRST)
ON_CPU = ("cpu", "openvino")


@dataclass(frozen=True)
class EncoderRequest:
    """The encoder that is asked for.

    bundle: its folder. onnx: the graph there, of `precision`. batch: tiles at once. build: whether an engine that is
    missing is built now. threads: of the CPU, None for all cores. tell: given what takes time, or could not be kept.
    """

    bundle: Path
    onnx: Path
    precision: str
    batch: int
    build: bool = True
    threads: int | None = None
    tell: Callable[[str], None] = lambda text: None


def open_encoder(provider: str, request: EncoderRequest) -> tuple[Session, str]:
    """Open the encoder on `provider`; and, of "auto", why each faster one was passed over, in a line ("" if none was).

    "auto" takes the first of FASTEST_FIRST that opens. Another is opened or refused, never replaced.
    Raises ResourceError where none opens, BundleError where the graph is not an encoder.
    """
    if provider != "auto":
        if provider not in FASTEST_FIRST:
            raise ResourceError(f"there is no provider {provider!r}; choose one of {', '.join(PROVIDERS)}")
        return _open(provider, request), ""
    passed: list[str] = []
    for name in FASTEST_FIRST:
        try:
            return _open(name, request), "; ".join(passed)
        except ResourceError as error:
            passed.append(f"{name}: {_cause(error)}")
    raise ResourceError(f"no provider runs here: {'; '.join(passed)}; install mclst[cpu]")


def list_providers() -> list[tuple[str, str, str]]:
    """(name, "yes" or "no", what it is here or why it is not), fastest first; opens no encoder."""
    rows = []
    for name in FASTEST_FIRST:
        try:
            rows.append((name, "yes", _present(name)))
        except ResourceError as error:
            rows.append((name, "no", str(error)))
    return rows


def onnxruntime_beside(provider: str) -> str:
    """ONNX Runtime's provider, "cuda" or "cpu", of a graph that stands beside an encoder on `provider`."""
    if provider in ON_CPU:
        return "cpu"
    try:
        check_onnxruntime("cuda")
    except ResourceError:
        return "cpu"
    return "cuda"


def _open(name: str, request: EncoderRequest) -> Session:
    if name == "cpu":
        return OnnxSession(request.onnx, threads=request.threads, at_once=request.batch)
    if name == "openvino":
        return OpenVinoSession(
            request.onnx, request.precision, threads=request.threads, at_once=request.batch
        )
    if name == "cuda":
        return open_onnx_cuda(request.onnx)
    library = load_library(_flavour(name))
    device = CudaDevice()
    check_target(library, device.gpu)
    wanted = EngineRequest(request.onnx, request.precision, library, device.gpu, request.batch)
    engine = open_engine(request.bundle, wanted, build=request.build, tell=request.tell)
    return open_tensorrt(library, device, engine)


def _flavour(name: str) -> Flavour:
    return "tensorrt" if name == "tensorrt" else "tensorrt-rtx"


def _present(name: str) -> str:
    if name == "openvino":
        return f"OpenVINO {openvino().__version__.split('-')[0]}"
    if name in ("cpu", "cuda"):
        import_name = check_onnxruntime(name)
        import onnxruntime

        at = "" if name == "cpu" else f" on {CudaDevice().gpu.name}"
        return f"ONNX Runtime {onnxruntime.__version__}, {import_name}{at}"
    library = load_library(_flavour(name))
    gpu = CudaDevice().gpu
    check_target(library, gpu)
    return f"{library} on {gpu.name} ({gpu.target}, driver {gpu.driver})"


def _cause(error: ResourceError) -> str:
    """A sentence without what to do about it."""
    return str(error).split("; ")[0]


def open_session(
    path: Path, provider: str = "cpu", *, threads: int | None = None, at_once: int = AT_ONCE
) -> Session:
    """Open the graph of an encoder on ONNX Runtime, "cpu" or "cuda", without a bundle around it.

    threads, at_once: see OnnxSession.

    Raises ResourceError where the provider is missing, BundleError where the graph is not an encoder.
    """
    if provider == "cpu":
        return OnnxSession(path, threads=threads, at_once=at_once)
    if provider != "cuda":
        raise ResourceError(
            f"ONNX Runtime's providers are cpu and cuda, not {provider!r}; choose one of them"
        )
    from mclst.runtime.encoder.cuda.onnxruntime_cuda import open_onnx_cuda

    return open_onnx_cuda(path)
