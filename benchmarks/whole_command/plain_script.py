"""A plain script from a picture and its spots to expression, as a user of ONNX Runtime or OpenVINO writes it.

It decodes the picture with Pillow, encodes batches of tiles with the library's defaults, retrieves with numpy
and saves an array. Of mclst it uses the exported graph and bank alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH = 32


def main() -> None:
    """Run as a process: print one JSON object with the seconds of encoding."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", choices=("onnxruntime", "openvino"), required=True)
    parser.add_argument("--precision", required=True)
    for name in ("--graph", "--bank", "--picture", "--centers", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--order", type=int, required=True)
    options = parser.parse_args()

    import h5py
    import numpy as np
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    encode = (_onnxruntime if options.library == "onnxruntime" else _openvino)(
        options.graph, options.precision
    )
    picture = Image.open(options.picture).convert("RGB")
    centers = np.floor(np.loadtxt(options.centers, delimiter=",", ndmin=2)).astype(int)
    half, seconds, parts = options.size // 2, 0.0, []
    for start in range(0, len(centers), BATCH):
        corners = centers[start : start + BATCH] - half
        crops = [picture.crop((x, y, x + options.size, y + options.size)) for x, y in corners.tolist()]
        tiles = np.stack([np.asarray(crop) for crop in crops])
        before = time.perf_counter()
        parts.append(encode(tiles))
        seconds += time.perf_counter() - before
    queries = np.concatenate(parts)
    with h5py.File(options.bank) as file:
        embedding, expression = file["embedding"][:], file["expression"][:]
    similarity = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    ).T
    nearest = np.argpartition(-similarity, options.k - 1, axis=1)[:, : options.k]
    predicted = np.empty((len(queries), expression.shape[1]), np.float32)
    for row, (query, rows) in enumerate(zip(queries, nearest, strict=True)):
        weight = np.linalg.norm(embedding[rows] - query, ord=options.order, axis=1) ** -2.0
        predicted[row] = (weight / weight.sum()) @ expression[rows]
    np.save(options.out, predicted)
    print(json.dumps({"encode_s": seconds}))


def _onnxruntime(graph: Path, precision: str) -> Callable[[Any], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return lambda tiles: session.run(None, {"tiles": tiles})[0]


def _openvino(graph: Path, precision: str) -> Callable[[Any], Any]:
    import numpy as np
    import openvino

    # Without the hint OpenVINO would compute an fp32 graph in bf16 where the processor can.
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    model = openvino.Core().compile_model(str(graph), "CPU", hint)
    return lambda tiles: np.array(model(tiles)[0])


if __name__ == "__main__":
    main()
