"""Encoders of the same network: mclst's session on each provider, and other libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from mclst.benchmarks.contenders.base import F32, U8, ContenderInputs, Encode, Encoder
from mclst.benchmarks.contenders.tensorrt_peers import polygraphy, trtexec
from mclst.benchmarks.harness.machine import installed_versions
from mclst.benchmarks.harness.measure import PeerUnavailable
from mclst.runtime.choices import ON_CPU
from mclst.runtime.encoder.cuda.session import DeviceSession
from mclst.runtime.encoder.session import INPUT
from mclst.runtime.errors import MclstError
from mclst.runtime.providers.opening import EncoderRequest, open_encoder
from mclst.runtime.providers.timings import describe_candidate

Opener = Callable[[ContenderInputs], Encoder]


def open_mclst(
    inputs: ContenderInputs, provider: str, precision: str, batch: int, lanes: int | None = None
) -> Encoder:
    """mclst's session; PeerUnavailable where the provider or the precision is missing."""
    if precision not in inputs.graphs:
        raise PeerUnavailable(f"the bundle has no {precision} graph")
    try:
        request = EncoderRequest(
            inputs.bundle, inputs.graphs[precision], precision, batch, threads=inputs.threads, lanes=lanes
        )
        session, _ = open_encoder(provider, request)
    except MclstError as error:
        raise PeerUnavailable(str(error)) from error
    return Encoder(
        f"mclst {describe_candidate((provider, precision, lanes))}",
        True,
        precision,
        session.encode,
        gpu=session.provider not in ON_CPU,
        versions={**installed_versions("mclst"), "engine": session.engine},
        device_seconds=session.device_seconds if isinstance(session, DeviceSession) else None,
    )


def onnxruntime(inputs: ContenderInputs, precision: str = "fp32") -> Encoder:
    """ONNX Runtime with default options except the threads."""
    if find_spec("onnxruntime") is None:
        raise PeerUnavailable("onnxruntime is not installed")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = inputs.threads
    session = ort.InferenceSession(str(inputs.graphs[precision]), options, providers=["CPUExecutionProvider"])

    def encode(tiles: U8) -> F32:
        embedding: F32 = session.run(None, {INPUT: tiles})[0]
        return embedding

    return Encoder(
        f"ONNX Runtime {precision}",
        False,
        precision,
        encode,
        versions=installed_versions("onnxruntime", "onnxruntime-gpu"),
    )


def openvino(inputs: ContenderInputs, precision: str = "fp32") -> Encoder:
    """OpenVINO on the processor with its latency hint; precision: "fp32" or "bf16"."""
    if find_spec("openvino") is None:
        raise PeerUnavailable("openvino is not installed")
    import openvino as ov

    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise PeerUnavailable("this processor has neither AMX-BF16 nor AVX-512 BF16")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": inputs.threads,
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
    }
    compiled = core.compile_model(core.read_model(inputs.graphs["fp32"]), "CPU", settings)

    def encode(tiles: U8) -> F32:
        return np.array(compiled(tiles)[0])

    return Encoder(f"OpenVINO {precision}", False, precision, encode, versions=installed_versions("openvino"))


def torch_eager(inputs: ContenderInputs, device: str = "cpu", *, channels_last: bool = False) -> Encoder:
    """The checkpoint's network in torch as published: uint8 → float on the host, then the network."""
    torch, network = _torch(inputs, device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    name = f"torch eager{' channels-last' if channels_last else ''}{'' if device == 'cpu' else f' {device}'}"
    return Encoder(
        name, False, "fp32", _through(torch, inputs, network.encode_tiles, device, layout),
        gpu=device != "cpu", versions=installed_versions("torch"),
    )  # fmt: skip


def torch_compiled(inputs: ContenderInputs, device: str = "cpu") -> Encoder:
    """The same network by torch.compile; compilation belongs to the warm-up."""
    torch, network = _torch(inputs, device)
    try:
        compiled = torch.compile(network.encode_tiles)
        encode = _through(torch, inputs, compiled, device, torch.contiguous_format)
        encode(np.zeros((2, inputs.tile_px, inputs.tile_px, 3), np.uint8))
    except Exception as error:  # without a C++ compiler it fails in many ways
        raise PeerUnavailable(f"torch.compile fails ({' '.join(str(error).split())[:120]})") from error
    name = f"torch.compile{'' if device == 'cpu' else f' {device}'}"
    return Encoder(name, False, "fp32", encode, gpu=device != "cpu", versions=installed_versions("torch"))


def peer_openers(inputs: ContenderInputs) -> dict[str, Opener]:
    """Opener of each peer, by name."""
    return {
        "ONNX Runtime fp32": onnxruntime,
        **({"ONNX Runtime int8": lambda g: onnxruntime(g, "int8")} if "int8" in inputs.graphs else {}),
        "OpenVINO fp32": openvino,
        "OpenVINO bf16": lambda g: openvino(g, "bf16"),
        "torch eager": torch_eager,
        "torch eager channels-last": lambda g: torch_eager(g, channels_last=True),
        "torch.compile": lambda g: torch_compiled(g),
        "torch eager cuda": lambda g: torch_eager(g, "cuda"),
        "torch.compile cuda": lambda g: torch_compiled(g, "cuda"),
        **{f"trtexec {p}": partial(trtexec, precision=p) for p in inputs.graphs},
        **{f"Polygraphy {p}": partial(polygraphy, precision=p) for p in inputs.graphs},
    }


def _on_gpu(name: str) -> bool:
    return name.endswith(" cuda") or name.startswith(("trtexec ", "Polygraphy "))


def open_peers(inputs: ContenderInputs, *, gpu: bool) -> tuple[list[Encoder], list[dict[str, str]]]:
    """Open every peer that runs here; also return why the others do not."""
    opened: list[Encoder] = []
    unavailable = []
    for name, opener in peer_openers(inputs).items():
        try:
            if not gpu and _on_gpu(name):
                raise PeerUnavailable("no CUDA device")
            opened.append(opener(inputs))
        except PeerUnavailable as error:
            unavailable.append({"name": name, "why": str(error)})
    return opened, unavailable


def _torch(inputs: ContenderInputs, device: str) -> tuple[Any, Any]:
    if find_spec("torch") is None:
        raise PeerUnavailable("torch is not installed")
    if inputs.network is None:
        raise PeerUnavailable("needs the checkpoint; give --ckpt")
    import copy

    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise PeerUnavailable("no CUDA device")
    torch.set_num_threads(inputs.threads)
    return torch, copy.deepcopy(inputs.network).to(device)


def _through(torch: Any, inputs: ContenderInputs, encode_tiles: Any, device: str, layout: Any) -> Encode:
    prepare = inputs.prepare
    assert prepare is not None, "a network comes with its preprocessing"

    def encode(tiles: U8) -> F32:
        with torch.inference_mode():
            pixels = prepare(tiles).to(device).contiguous(memory_format=layout)
            return np.asarray(encode_tiles(pixels).float().cpu().numpy())

    return encode
