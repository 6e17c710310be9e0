"""NVIDIA's tools that run the same graph by TensorRT: trtexec and Polygraphy. Not yet run on a GPU."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from mclst.benchmarks.contenders.base import F32, U8, ContenderInputs, Encoder, QueryTimes
from mclst.benchmarks.harness.machine import installed_versions
from mclst.benchmarks.harness.measure import PeerUnavailable
from mclst.runtime.encoder.session import INPUT

TRANSFERS = "--includeDataTransfers"
"""Includes copies since TensorRT 11; earlier versions always include them and lack the option."""

_STAGES = {"h2dMs": "upload", "computeMs": "encode", "d2hMs": "download"}


def trtexec(inputs: ContenderInputs, precision: str = "fp32") -> Encoder:
    """TensorRT's benchmark program, copies included, with CUDA graph.

    It builds its engine outside the timing and times the device stages itself.
    """
    program = shutil.which("trtexec")
    if program is None:
        raise PeerUnavailable("there is no trtexec")
    graph = _graph(inputs, precision)
    side = inputs.tile_px
    engines: dict[int, Path] = {}
    folder = Path(tempfile.mkdtemp(prefix="mclst-trtexec-"))
    completed = subprocess.run([program, "--help"], capture_output=True, text=True, check=False, timeout=60)
    usage = completed.stdout + completed.stderr
    options = [word for word in ("--useSpinWait", "--useCudaGraph", TRANSFERS) if word in usage]

    def run(*arguments: str) -> None:
        completed = subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, timeout=900
        )
        if completed.returncode:
            lines = (completed.stdout + completed.stderr).strip().splitlines()
            raise PeerUnavailable(f"trtexec fails: {lines[-1][:160] if lines else completed.returncode}")

    def measure(batch: int, seconds: float) -> QueryTimes:
        shape = f"--shapes={INPUT}:{batch}x{side}x{side}x3"
        if batch not in engines:
            path = folder / f"{batch}.engine"
            run(f"--onnx={graph}", shape, f"--saveEngine={path}", "--skipInference")
            engines[batch] = path
        times_path = folder / "times.json"
        run(
            f"--loadEngine={engines[batch]}", shape, f"--exportTimes={times_path}",
            f"--duration={max(1, round(seconds))}", *options,
        )  # fmt: skip
        queries = json.loads(times_path.read_text())
        return QueryTimes(
            [query["latencyMs"] / 1e3 for query in queries],
            {stage: [query[name] / 1e3 for query in queries] for name, stage in _STAGES.items()},
        )

    def encode(tiles: U8) -> F32:
        raise PeerUnavailable("trtexec gives no embeddings")

    banner = re.search(r"\[TensorRT v([\d.]+)\]", usage)
    versions = {} if banner is None else {"trtexec": banner[1]}
    encoder = Encoder(
        f"trtexec {precision}", False, precision, encode, gpu=True, versions=versions, measure=measure
    )
    weakref.finalize(encoder, shutil.rmtree, folder, ignore_errors=True)
    return encoder


def polygraphy(inputs: ContenderInputs, precision: str = "fp32") -> Encoder:
    """Polygraphy's TensorRT runner on a strongly typed engine, built at a batch size's first query."""
    graph = _graph(inputs, precision)
    try:
        from polygraphy.backend.trt import (
            CreateConfig,
            EngineFromNetwork,
            NetworkFromOnnxPath,
            Profile,
            TrtRunner,
        )
    except ImportError as error:
        raise PeerUnavailable("polygraphy is not installed") from error
    try:
        import tensorrt  # noqa: F401
    except ImportError as error:
        raise PeerUnavailable("tensorrt is not installed") from error
    opened: dict[int, Any] = {}

    def runner(batch: int) -> Any:
        if batch not in opened:
            for other in opened.values():
                other.deactivate()
            opened.clear()
            shape = (batch, inputs.tile_px, inputs.tile_px, 3)
            profile = Profile().add(INPUT, min=shape, opt=shape, max=shape)
            network = NetworkFromOnnxPath(str(graph), strongly_typed=True)
            opened[batch] = TrtRunner(EngineFromNetwork(network, config=CreateConfig(profiles=[profile])))
            opened[batch].activate()
        return opened[batch]

    def encode(tiles: U8) -> F32:
        # Copied: the next query overwrites the output buffer.
        return np.array(next(iter(runner(len(tiles)).infer({INPUT: tiles}).values())))

    return Encoder(
        f"Polygraphy {precision}",
        False,
        precision,
        encode,
        gpu=True,
        versions=installed_versions("polygraphy", "tensorrt"),
    )


def _graph(inputs: ContenderInputs, precision: str) -> Path:
    if precision not in inputs.graphs:
        raise PeerUnavailable(f"the bundle has no {precision} graph")
    return inputs.graphs[precision]
