"""Who encodes the same tiles: mclst's session on each provider, and others' ways to run the same network."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.peers import Absent
from mclst.runtime.errors import MclstError
from mclst.runtime.providers import ON_CPU, Request, open_encoder
from mclst.runtime.session import INPUT

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Encode = Callable[[U8], F32]


@dataclass(frozen=True)
class Encoder:
    """A contender, opened.

    encode: uint8 tiles [b, H, W, 3] → float32 [b, D], done when it returns. gpu: whether it works on one.
    precision: of its arithmetic. versions: of what executes it. threads: of the processor it may use.
    times: in place of timing `encode`, one that times itself: (batch, seconds) → seconds of each query.
    """

    name: str
    ours: bool
    precision: str
    encode: Encode
    gpu: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    times: Callable[[int, float], list[float]] | None = None


@dataclass(frozen=True)
class Given:
    """What contenders are made from.

    bundle: its folder. graphs: by precision, its ONNX graphs, "fp32" among them. threads: of the processor, for each
    contender. tile_px: side of a tile. network: the checkpoint's, a torch module, or None where none was given;
    prepare: its preprocessing, tiles uint8 [b, S, S, 3] → tensor.
    """

    bundle: Path
    graphs: dict[str, Path]
    threads: int
    tile_px: int
    network: Any = None
    prepare: Callable[[U8], Any] | None = None


Open = Callable[[Given], Encoder]


def ours(given: Given, provider: str, precision: str, batch: int) -> Encoder:
    """mclst's own session; raises Absent where the provider does not start or the bundle has no such graph."""
    if precision not in given.graphs:
        raise Absent(f"the bundle has no {precision} graph")
    try:
        request = Request(given.bundle, given.graphs[precision], precision, batch, threads=given.threads)
        session, _ = open_encoder(provider, request)
    except MclstError as error:
        raise Absent(str(error)) from error
    return Encoder(
        f"mclst {provider} {precision}",
        True,
        precision,
        session.encode,
        gpu=session.provider not in ON_CPU,
        versions={**_versions("mclst"), "engine": session.engine},
    )


def plain_onnxruntime(given: Given, precision: str = "fp32") -> Encoder:
    """ONNX Runtime as its own examples use it: every option at its default but the threads."""
    if find_spec("onnxruntime") is None:
        raise Absent("onnxruntime is not installed")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = given.threads
    session = onnxruntime.InferenceSession(
        str(given.graphs[precision]), options, providers=["CPUExecutionProvider"]
    )

    def encode(tiles: U8) -> F32:
        found: F32 = session.run(None, {INPUT: tiles})[0]
        return found

    return Encoder(
        f"ONNX Runtime {precision}",
        False,
        precision,
        encode,
        versions=_versions("onnxruntime", "onnxruntime-gpu"),
    )


def openvino(given: Given, precision: str = "fp32") -> Encoder:
    """OpenVINO on the processor, set for throughput; precision: what it may compute in, "fp32" or "bf16".

    A batch is handed over whole, as its own benchmark does with one request per stream.
    """
    if find_spec("openvino") is None:
        raise Absent("openvino is not installed")
    import openvino as ov

    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Absent("this processor has no bf16 arithmetic")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": given.threads,
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
    }
    compiled = core.compile_model(core.read_model(given.graphs["fp32"]), "CPU", settings)

    def encode(tiles: U8) -> F32:
        return np.array(compiled(tiles)[0])

    return Encoder(f"OpenVINO {precision}", False, precision, encode, versions=_versions("openvino"))


def torch_eager(given: Given, device: str = "cpu", *, channels_last: bool = False) -> Encoder:
    """The checkpoint's own network in torch, as published: uint8 → float on the host, then the network."""
    torch, network = _torch(given, device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    name = f"torch eager{' channels-last' if channels_last else ''}{'' if device == 'cpu' else f' {device}'}"
    return Encoder(
        name, False, "fp32", _through(torch, given, network.encode_tiles, device, layout), gpu=device != "cpu",
        versions=_versions("torch"),
    )  # fmt: skip


def torch_compiled(given: Given, device: str = "cpu") -> Encoder:
    """The same network by torch.compile; what it takes to compile belongs to its warm-up."""
    torch, network = _torch(given, device)
    try:
        compiled = torch.compile(network.encode_tiles)
        encode = _through(torch, given, compiled, device, torch.contiguous_format)
        encode(np.zeros((2, given.tile_px, given.tile_px, 3), np.uint8))
    except Exception as error:  # it needs a C++ compiler, and fails in its own ways without
        raise Absent(f"torch.compile fails here ({' '.join(str(error).split())[:120]})") from error
    name = f"torch.compile{'' if device == 'cpu' else f' {device}'}"
    return Encoder(name, False, "fp32", encode, gpu=device != "cpu", versions=_versions("torch"))


def trtexec(given: Given, precision: str = "fp32") -> Encoder:
    """TensorRT's own benchmark program, transfers counted in; it builds its engine outside the timing."""
    program = shutil.which("trtexec")
    if program is None:
        raise Absent("there is no trtexec")
    if precision not in given.graphs:
        raise Absent(f"the bundle has no {precision} graph")
    side = given.tile_px
    engines: dict[int, Path] = {}
    folder = tempfile.TemporaryDirectory(prefix="mclst-trtexec-")

    def run(*words: str) -> None:
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=900)
        if done.returncode:
            lines = (done.stdout + done.stderr).strip().splitlines()
            raise Absent(f"trtexec fails: {lines[-1][:160] if lines else done.returncode}")

    def times(batch: int, seconds: float) -> list[float]:
        shape = f"--shapes={INPUT}:{batch}x{side}x{side}x3"
        if batch not in engines:
            path = Path(folder.name) / f"{batch}.engine"
            run(f"--onnx={given.graphs[precision]}", shape, f"--saveEngine={path}", "--skipInference")
            engines[batch] = path
        told = Path(folder.name) / "times.json"
        run(
            f"--loadEngine={engines[batch]}", shape, f"--exportTimes={told}", f"--duration={max(1, round(seconds))}",
            "--useSpinWait",
        )  # fmt: skip
        return [entry["latencyMs"] / 1e3 for entry in json.loads(told.read_text())]

    def encode(tiles: U8) -> F32:
        raise Absent("trtexec gives no embeddings")

    return Encoder(f"trtexec {precision}", False, precision, encode, gpu=True, times=times)


def peers(given: Given, *, gpu: bool) -> tuple[list[Encoder], list[dict[str, str]]]:
    """Every peer that runs here, opened, and why the others do not."""
    wanted: list[tuple[str, Open]] = [
        ("ONNX Runtime fp32", plain_onnxruntime),
        ("OpenVINO fp32", openvino),
        ("OpenVINO bf16", lambda g: openvino(g, "bf16")),
        ("torch eager", torch_eager),
        ("torch eager channels-last", lambda g: torch_eager(g, channels_last=True)),
        ("torch.compile", lambda g: torch_compiled(g)),
    ]
    if "int8" in given.graphs:
        wanted.append(("ONNX Runtime int8", lambda g: plain_onnxruntime(g, "int8")))
    on_gpu: list[tuple[str, Open]] = [
        ("torch eager cuda", lambda g: torch_eager(g, "cuda")),
        ("torch.compile cuda", lambda g: torch_compiled(g, "cuda")),
        *((f"trtexec {p}", lambda g, p=p: trtexec(g, p)) for p in given.graphs),
    ]
    opened: list[Encoder] = []
    absent = []
    for name, ready in wanted + (on_gpu if gpu else []):
        try:
            opened.append(ready(given))
        except Absent as why:
            absent.append({"name": name, "why": str(why)})
    if not gpu:
        absent += [{"name": name, "why": "no CUDA device"} for name, _ in on_gpu]
    return opened, absent


def _torch(given: Given, device: str) -> tuple[Any, Any]:
    if find_spec("torch") is None:
        raise Absent("torch is not installed")
    if given.network is None:
        raise Absent("needs the checkpoint; give --ckpt")
    import copy

    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise Absent("no CUDA device")
    torch.set_num_threads(given.threads)
    return torch, copy.deepcopy(given.network).to(device)


def _through(torch: Any, given: Given, encode_tiles: Any, device: str, layout: Any) -> Encode:
    prepare = given.prepare
    assert prepare is not None, "a network comes with its preprocessing"

    def encode(tiles: U8) -> F32:
        with torch.inference_mode():
            pixels = prepare(tiles).to(device).contiguous(memory_format=layout)
            return np.asarray(encode_tiles(pixels).float().cpu().numpy())

    return encode


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
