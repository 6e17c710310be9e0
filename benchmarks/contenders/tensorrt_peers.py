"""NVIDIA's own ways to run the same graph by TensorRT: its benchmark program, and Polygraphy. Neither has run here on a GPU."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mclst.benchmarks.contenders.base import F32, U8, ContenderInputs, Encoder, Timed, versions
from mclst.benchmarks.harness.errors import PeerUnavailable
from mclst.runtime.encoder.session import INPUT

TRANSFERS = "--includeDataTransfers"
"""Since TensorRT 11 copies are left out unless this is given; before, they are counted in, and it is unknown."""

_STAGES = {"h2dMs": "upload", "computeMs": "encode", "d2hMs": "download"}


def trtexec(given: ContenderInputs, precision: str = "fp32") -> Encoder:
    """TensorRT's benchmark program, copies counted in, its work captured as a CUDA graph.

    It builds its engine outside the timing, and times the stages on the device itself.
    """
    program = shutil.which("trtexec")
    if program is None:
        raise PeerUnavailable("there is no trtexec")
    graph = _graph(given, precision)
    side = given.tile_px
    engines: dict[int, Path] = {}
    folder = tempfile.TemporaryDirectory(prefix="mclst-trtexec-")
    told = subprocess.run([program, "--help"], capture_output=True, text=True, check=False, timeout=60)
    known = told.stdout + told.stderr
    how = [word for word in ("--useSpinWait", "--useCudaGraph", TRANSFERS) if word in known]

    def run(*words: str) -> None:
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=900)
        if done.returncode:
            lines = (done.stdout + done.stderr).strip().splitlines()
            raise PeerUnavailable(f"trtexec fails: {lines[-1][:160] if lines else done.returncode}")

    def times(batch: int, seconds: float) -> Timed:
        shape = f"--shapes={INPUT}:{batch}x{side}x{side}x3"
        if batch not in engines:
            path = Path(folder.name) / f"{batch}.engine"
            run(f"--onnx={graph}", shape, f"--saveEngine={path}", "--skipInference")
            engines[batch] = path
        saved = Path(folder.name) / "times.json"
        run(
            f"--loadEngine={engines[batch]}", shape, f"--exportTimes={saved}",
            f"--duration={max(1, round(seconds))}", *how,
        )  # fmt: skip
        queries = json.loads(saved.read_text())
        return Timed(
            [query["latencyMs"] / 1e3 for query in queries],
            {stage: [query[name] / 1e3 for query in queries] for name, stage in _STAGES.items()},
        )

    def encode(tiles: U8) -> F32:
        raise PeerUnavailable("trtexec gives no embeddings")

    banner = re.search(r"\[TensorRT v([\d.]+)\]", known)
    which = {} if banner is None else {"trtexec": banner[1]}
    return Encoder(f"trtexec {precision}", False, precision, encode, gpu=True, versions=which, times=times)


def polygraphy(given: ContenderInputs, precision: str = "fp32") -> Encoder:
    """Polygraphy's TensorRT runner on a strongly typed engine, built at the first query of a batch size."""
    graph = _graph(given, precision)
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
            shape = (batch, given.tile_px, given.tile_px, 3)
            profile = Profile().add(INPUT, min=shape, opt=shape, max=shape)
            network = NetworkFromOnnxPath(str(graph), strongly_typed=True)
            found = TrtRunner(EngineFromNetwork(network, config=CreateConfig(profiles=[profile])))
            found.activate()
            opened[batch] = found
        return opened[batch]

    def encode(tiles: U8) -> F32:
        # Its output stands in a buffer that the next query writes to.
        return np.array(next(iter(runner(len(tiles)).infer({INPUT: tiles}).values())))

    return Encoder(
        f"Polygraphy {precision}",
        False,
        precision,
        encode,
        gpu=True,
        versions=versions("polygraphy", "tensorrt"),
    )


def _graph(given: ContenderInputs, precision: str) -> Path:
    if precision not in given.graphs:
        raise PeerUnavailable(f"the bundle has no {precision} graph")
    return given.graphs[precision]
