"""Providers of the encoder: which run here, and opening one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mclst.runtime.choices import FASTEST_FIRST, ON_CPU, PROVIDERS
from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.cuda.onnxruntime_cuda import open_onnx_cuda
from mclst.runtime.encoder.onnxruntime_cpu import OnnxSession, check_onnxruntime
from mclst.runtime.encoder.openvino import OpenVinoSession, openvino
from mclst.runtime.encoder.session import Session
from mclst.runtime.encoder.tensorrt.engine_cache import EngineRequest, check_target, open_engine
from mclst.runtime.encoder.tensorrt.library import Flavor, load_library
from mclst.runtime.encoder.tensorrt.session import open_tensorrt
from mclst.runtime.errors import ResourceError


@dataclass(frozen=True)
class EncoderRequest:
    """The encoder to open.

    bundle: its folder. onnx: the graph in `precision`. batch: tiles encoded at once. build: whether to build
    a missing engine. threads: of the CPU, None for all cores. lanes: tiles encoded side by side there, None
    for one per thread. notify: called with what takes time or could not be kept. content: gives, for a
    provider on the CPU, a graph to open in place of `onnx`, or None.
    """

    bundle: Path
    onnx: Path
    precision: str
    batch: int
    build: bool = True
    threads: int | None = None
    lanes: int | None = None
    notify: Callable[[str], None] = lambda text: None
    content: Callable[[str], bytes | None] = field(default=lambda provider: None, compare=False)


def open_encoder(provider: str, request: EncoderRequest) -> tuple[Session, str]:
    """Open the encoder.

    Parameters
    ----------
    provider : str
        One of `PROVIDERS`. "auto" takes the first of `FASTEST_FIRST` that opens; any other is opened or
        refused.
    request : EncoderRequest

    Returns
    -------
    session : Session
    skipped : str
        Why "auto" skipped each faster provider, "" if none was.

    Raises
    ------
    ResourceError
        If no provider opens.
    BundleError
        If the graph is not an encoder.
    """
    if provider != "auto":
        if provider not in FASTEST_FIRST:
            raise ResourceError(f"there is no provider {provider!r}; choose one of {', '.join(PROVIDERS)}")
        return _open(provider, request), ""
    skipped: list[str] = []
    for name in FASTEST_FIRST:
        try:
            return _open(name, request), "; ".join(skipped)
        except ResourceError as error:
            skipped.append(f"{name}: {_cause(error)}")
    raise ResourceError(f"no provider runs here: {'; '.join(skipped)}; install mclst[cpu]")


def list_providers() -> list[tuple[str, str, str]]:
    """Return (name, "yes" or "no", version or reason) of each provider, fastest first."""
    rows = []
    for name in FASTEST_FIRST:
        try:
            rows.append((name, "yes", check_provider(name)))
        except ResourceError as error:
            rows.append((name, "no", str(error)))
    return rows


def onnxruntime_beside(provider: str) -> str:
    """Return ONNX Runtime's provider, "cuda" or "cpu", for a graph next to an encoder on `provider`."""
    if provider in ON_CPU:
        return "cpu"
    try:
        check_onnxruntime("cuda")
    except ResourceError:
        return "cpu"
    return "cuda"


def _open(name: str, request: EncoderRequest) -> Session:
    lanes = min(request.lanes or request.batch, request.batch)
    if name == "cpu":
        return OnnxSession(request.onnx, content=request.content(name), threads=request.threads, lanes=lanes)
    if name == "openvino":
        return OpenVinoSession(
            request.onnx,
            request.precision,
            content=request.content(name),
            threads=request.threads,
            lanes=lanes,
        )
    if name == "cuda":
        return open_onnx_cuda(request.onnx)
    device = CudaDevice()  # first: the library takes hundreds of MiB of addresses
    library = load_library(flavor_of(name))
    check_target(library, device.gpu)
    engine_request = EngineRequest(request.onnx, request.precision, library, device.gpu, request.batch)
    engine = open_engine(request.bundle, engine_request, build=request.build, notify=request.notify)
    return open_tensorrt(library, device, engine)


def flavor_of(name: str) -> Flavor:
    """Return the TensorRT library of a provider."""
    return "tensorrt" if name == "tensorrt" else "tensorrt-rtx"


def check_provider(name: str) -> str:
    """Return a provider's version and device; raise ResourceError if it is not here."""
    if name == "openvino":
        return f"OpenVINO {openvino().__version__.split('-')[0]}"
    if name in ("cpu", "cuda"):
        import_name = check_onnxruntime(name)
        import onnxruntime

        at = "" if name == "cpu" else f" on {CudaDevice().gpu.name}"
        return f"ONNX Runtime {onnxruntime.__version__}, {import_name}{at}"
    gpu = CudaDevice().gpu
    library = load_library(flavor_of(name))
    check_target(library, gpu)
    return f"{library} on {gpu.name} ({gpu.target}, driver {gpu.driver})"


def _cause(error: ResourceError) -> str:
    """Return an error's sentence without the advice."""
    return str(error).split("; ")[0]


def open_session(
    path: Path, provider: str = "cpu", *, threads: int | None = None, lanes: int | None = None
) -> Session:
    """Open an encoder's graph without a bundle, on ONNX Runtime's "cpu" or "cuda"; see OnnxSession.

    Raises ResourceError if the provider is missing, BundleError if the graph is not an encoder.
    """
    if provider == "cpu":
        return OnnxSession(path, threads=threads, lanes=lanes)
    if provider != "cuda":
        raise ResourceError(
            f"ONNX Runtime's providers are cpu and cuda, not {provider!r}; choose one of them"
        )
    return open_onnx_cuda(path)
