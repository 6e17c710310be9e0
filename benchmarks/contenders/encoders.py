"""Who encodes the same tiles: mclst's session on each provider, and others' ways to run the same network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from mclst.benchmarks.contenders.base import F32, U8, ContenderInputs, Encode, Encoder, versions
from mclst.benchmarks.contenders.tensorrt_peers import polygraphy, trtexec
from mclst.benchmarks.harness.errors import PeerUnavailable
from mclst.runtime.encoder.cuda.session import DeviceSession
from mclst.runtime.encoder.session import INPUT
from mclst.runtime.errors import MclstError
from mclst.runtime.inference.providers import ON_CPU, EncoderRequest, open_encoder

Open = Callable[[ContenderInputs], Encoder]


def ours(given: ContenderInputs, provider: str, precision: str, batch: int) -> Encoder:
    """mclst's own session; raises Absent where the provider does not start or the bundle has no such graph."""
    if precision not in given.graphs:
        raise PeerUnavailable(f"the bundle has no {precision} graph")
    try:
        request = EncoderRequest(
            given.bundle, given.graphs[precision], precision, batch, threads=given.threads
        )
        session, _ = open_encoder(provider, request)
    except MclstError as error:
        raise PeerUnavailable(str(error)) from error
    return Encoder(
        f"mclst {provider} {precision}",
        True,
        precision,
        session.encode,
        gpu=session.provider not in ON_CPU,
        versions={**versions("mclst"), "engine": session.engine},
        device_seconds=session.device_seconds if isinstance(session, DeviceSession) else None,
    )


def plain_onnxruntime(given: ContenderInputs, precision: str = "fp32") -> Encoder:
    """ONNX Runtime as its own examples use it: every option at its default but the threads."""
    if find_spec("onnxruntime") is None:
        raise PeerUnavailable("onnxruntime is not installed")
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
        versions=versions("onnxruntime", "onnxruntime-gpu"),
    )


def openvino(given: ContenderInputs, precision: str = "fp32") -> Encoder:
    """OpenVINO on the processor, set for throughput; precision: what it may compute in, "fp32" or "bf16".

    A batch is handed over whole, as its own benchmark does with one request per stream.
    """
    if find_spec("openvino") is None:
        raise PeerUnavailable("openvino is not installed")
    import openvino as ov

    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise PeerUnavailable("this processor has no bf16 arithmetic")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": given.threads,
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
    }
    compiled = core.compile_model(core.read_model(given.graphs["fp32"]), "CPU", settings)

    def encode(tiles: U8) -> F32:
        return np.array(compiled(tiles)[0])

    return Encoder(f"OpenVINO {precision}", False, precision, encode, versions=versions("openvino"))


def torch_eager(given: ContenderInputs, device: str = "cpu", *, channels_last: bool = False) -> Encoder:
    """The checkpoint's own network in torch, as published: uint8 → float on the host, then the network."""
    torch, network = _torch(given, device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    name = f"torch eager{' channels-last' if channels_last else ''}{'' if device == 'cpu' else f' {device}'}"
    return Encoder(
        name, False, "fp32", _through(torch, given, network.encode_tiles, device, layout), gpu=device != "cpu",
        versions=versions("torch"),
    )  # fmt: skip


def torch_compiled(given: ContenderInputs, device: str = "cpu") -> Encoder:
    """The same network by torch.compile; what it takes to compile belongs to its warm-up."""
    torch, network = _torch(given, device)
    try:
        compiled = torch.compile(network.encode_tiles)
        encode = _through(torch, given, compiled, device, torch.contiguous_format)
        encode(np.zeros((2, given.tile_px, given.tile_px, 3), np.uint8))
    except Exception as error:  # it needs a C++ compiler, and fails in its own ways without
        raise PeerUnavailable(f"torch.compile fails here ({' '.join(str(error).split())[:120]})") from error
    name = f"torch.compile{'' if device == 'cpu' else f' {device}'}"
    return Encoder(name, False, "fp32", encode, gpu=device != "cpu", versions=versions("torch"))


def ways(given: ContenderInputs) -> dict[str, Open]:
    """How each peer is opened, by its name."""
    return {
        "ONNX Runtime fp32": plain_onnxruntime,
        **({"ONNX Runtime int8": lambda g: plain_onnxruntime(g, "int8")} if "int8" in given.graphs else {}),
        "OpenVINO fp32": openvino,
        "OpenVINO bf16": lambda g: openvino(g, "bf16"),
        "torch eager": torch_eager,
        "torch eager channels-last": lambda g: torch_eager(g, channels_last=True),
        "torch.compile": lambda g: torch_compiled(g),
        "torch eager cuda": lambda g: torch_eager(g, "cuda"),
        "torch.compile cuda": lambda g: torch_compiled(g, "cuda"),
        **{f"trtexec {p}": partial(trtexec, precision=p) for p in given.graphs},
        **{f"Polygraphy {p}": partial(polygraphy, precision=p) for p in given.graphs},
    }


def _on_gpu(name: str) -> bool:
    return name.endswith(" cuda") or name.startswith(("trtexec ", "Polygraphy "))


def peers(given: ContenderInputs, *, gpu: bool) -> tuple[list[Encoder], list[dict[str, str]]]:
    """Every peer that runs here, opened, and why the others do not."""
    opened: list[Encoder] = []
    absent = []
    for name, ready in ways(given).items():
        try:
            if not gpu and _on_gpu(name):
                raise PeerUnavailable("no CUDA device")
            opened.append(ready(given))
        except PeerUnavailable as why:
            absent.append({"name": name, "why": str(why)})
    return opened, absent


def _torch(given: ContenderInputs, device: str) -> tuple[Any, Any]:
    if find_spec("torch") is None:
        raise PeerUnavailable("torch is not installed")
    if given.network is None:
        raise PeerUnavailable("needs the checkpoint; give --ckpt")
    import copy

    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise PeerUnavailable("no CUDA device")
    torch.set_num_threads(given.threads)
    return torch, copy.deepcopy(given.network).to(device)


def _through(torch: Any, given: ContenderInputs, encode_tiles: Any, device: str, layout: Any) -> Encode:
    prepare = given.prepare
    assert prepare is not None, "a network comes with its preprocessing"

    def encode(tiles: U8) -> F32:
        with torch.inference_mode():
            pixels = prepare(tiles).to(device).contiguous(memory_format=layout)
            return np.asarray(encode_tiles(pixels).float().cpu().numpy())

    return encode
