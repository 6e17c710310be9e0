"""A DenseNet-121 of torch in the ring, from memory and from a JPEG-tiled TIFF; for `make gpu-check`.

Weights are random: speed does not depend on them. Writes a document per measurement as soon as it is there.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mclst.benchmarks.gpu_check import decoders
from mclst.benchmarks.gpu_check.torch_runner import torch_session
from mclst.runtime.batches import Buffers, TileBatch
from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.cuda.session import DeviceSession
from mclst.runtime.encoder.ring import Group, Ring, Source
from mclst.runtime.errors import MclstError
from mclst.runtime.progress import Clock
from mclst.runtime.resources import available_cores

SIDE, WIDTH = 224, 1024
TILE = (SIDE, SIDE, 3)
BATCHES, BATCH, GROUP_ROWS, ROUNDS = (1, 64, 128), 64, 512, 3
GENES, BANK_ROWS = 785, 11_372
_PICTURES = 64


class TilesInMemory:
    """`n` tiles, copied into the ring's buffers by threads."""

    def __init__(self, n: int, batch: int, workers: int) -> None:
        rng = np.random.default_rng(0)
        small = rng.integers(0, 256, (_PICTURES, SIDE // 8, SIDE // 8, 3), np.uint8)
        self.pictures = np.kron(small, np.ones((1, 8, 8, 1), np.uint8))
        self.n, self._batch, self._workers = n, batch, workers

    def stream(self, buffers: Buffers) -> Generator[TileBatch]:
        """See `Source`."""
        batches = [np.arange(at, min(self.n, at + self._batch)) for at in range(0, self.n, self._batch)]
        per_group = max(1, GROUP_ROWS // self._batch)
        ahead: deque[tuple[int, Future[None]]] = deque()
        with ThreadPoolExecutor(self._workers) as pool:
            for number, rows in enumerate(batches):
                while (following := number + len(ahead)) < len(batches):
                    slot = buffers.take(wait=not ahead)
                    if slot is None:
                        break
                    ahead.append((slot, pool.submit(self._fill, batches[following], buffers.buffer(slot))))
                slot, task = ahead.popleft()
                task.result()
                ends = (number + 1) % per_group == 0 or number + 1 == len(batches)
                yield TileBatch(rows, buffers.buffer(slot)[: len(rows)], (), ends, slot)

    def _fill(self, rows: NDArray[np.int64], buffer: NDArray[np.uint8]) -> None:
        for to, row in enumerate(rows.tolist()):
            buffer[to] = self.pictures[row % _PICTURES]


def densenet(dtype: Any) -> Callable[[Any], Any]:
    """Tiles uint8 [n, 224, 224, 3] → float32 [n, 1024], channels last, all in `dtype`."""
    from torchvision.models import densenet121

    torch.manual_seed(0)
    network = densenet121(weights=None).features.eval().cuda().to(dtype, memory_format=torch.channels_last)
    torch.cuda.synchronize()  # the ring's streams do not wait for the default one

    def embed(tiles: Any) -> Any:
        pixels = tiles.permute(0, 3, 1, 2).to(dtype) / 255
        return torch.relu(network(pixels)).mean(dim=(2, 3)).float()

    return embed


def ring_run(
    session: DeviceSession,
    source: Source,
    batch: int,
    clock: Clock,
    *,
    on_device: bool = False,
    take: Callable[[Group], object] = lambda group: None,
) -> float:
    """Wall seconds of all tiles of `source` through the ring, without its set-up."""
    stages = session.stages(batch, group_rows=GROUP_ROWS + batch, on_device=on_device, clock=clock)
    start = time.perf_counter()
    with closing(Ring(stages).run(source)) as steps:
        for step in steps:
            if step.group is not None:
                take(step.group)
    return time.perf_counter() - start


def measure_batch(device: CudaDevice, batch: int, *, graph: bool) -> dict[str, Any]:
    """Tiles per second from memory, the stages' device times, and how near float32 the embeddings are."""
    session = torch_session(device, densenet(torch.float16), TILE, WIDTH, graph=graph)
    n = 512 if batch == 1 else 128 * batch
    workers = min(8, available_cores())
    source = TilesInMemory(n, batch, workers)
    ring_run(session, TilesInMemory(4 * batch, batch, workers), batch, Clock())
    runs, walls = [], []
    for _ in range(ROUNDS):
        clock = Clock()
        walls.append(ring_run(session, source, batch, clock))
        runs.append({"wall_s": walls[-1], "stages_s": dict(clock)})
    half = session.encode(source.pictures[:16])
    with torch.inference_mode():
        full = densenet(torch.float32)(torch.from_numpy(source.pictures[:16]).cuda()).cpu().numpy()
    cosine = (half * full).sum(1) / np.linalg.norm(half, axis=1) / np.linalg.norm(full, axis=1)
    return {
        "engine": session.engine,
        "device": device.gpu.name,
        "batch": batch,
        "tiles": n,
        "tiles_per_second": n / statistics.median(walls),
        "runs": runs,
        "least_cosine_to_fp32": float(cosine.min()),
    }


def measure_slide(device: CudaDevice, folder: Path) -> dict[str, Any]:
    """From a JPEG-tiled TIFF to expression: decoding by threads, encoder and retrieval on the device."""
    decoded_by = decoders.prepare()
    from mclst.benchmarks.reading.jpeg_slide import write_slide
    from mclst.kernels.definition.spec import RetrievalSpec
    from mclst.kernels.retriever import Retriever
    from mclst.runtime.slide.open import open_slide
    from mclst.runtime.tiling.bounds import check_centers
    from mclst.runtime.tiling.tiles import Tiles, TileShape

    path, xy = write_slide(folder / "slide.tiff")
    session = torch_session(device, densenet(torch.float16), TILE, WIDTH, graph=True)
    rng = np.random.default_rng(0)

    class Bank:
        embedding = rng.normal(size=(BANK_ROWS, WIDTH)).astype(np.float32)
        expression = rng.gamma(1.0, size=(BANK_ROWS, GENES)).astype(np.float32)

    retriever = Retriever(Bank(), RetrievalSpec(k=200), "cuda")
    workers, runs, walls = min(16, available_cores()), [], list[float]()
    expression = np.full((len(xy), GENES), np.nan, np.float32)
    retrieving = 0.0

    def take(group: Group) -> None:
        nonlocal retrieving
        start = time.perf_counter()
        expression[group.rows] = retriever.aggregate(group.values).expression
        retrieving += time.perf_counter() - start

    for _ in range(ROUNDS):
        clock, retrieving = Clock(), 0.0
        with open_slide(path) as slide:
            check_centers(xy, slide, lambda row: f"tile {row} of {path.name}")
            tiles = Tiles(
                slide, xy, TileShape(SIDE), batch_size=BATCH, workers=workers, group=GROUP_ROWS // BATCH
            )
            walls.append(ring_run(session, tiles, BATCH, clock, on_device=True, take=take))
            reading = tiles.seconds_reading
        stages = {"read, all threads": reading, **clock, "retrieve": retrieving}
        runs.append({"wall_s": walls[-1], "stages_s": stages})
    if not np.isfinite(expression).all():
        raise ValueError("some tiles gave no expression")
    return {
        "engine": session.engine,
        "device": device.gpu.name,
        "slide_bytes": path.stat().st_size,
        "decoded_by": decoded_by,
        "tiles": len(xy),
        "workers": workers,
        "tiles_per_second": len(xy) / statistics.median(walls),
        "runs": runs,
    }


def main() -> None:
    """Measure into the folder of the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.benchmark = True
    device = CudaDevice()
    measurements: dict[str, Callable[[], dict[str, Any]]] = {
        **{f"graph-{batch}": partial(measure_batch, device, batch, graph=True) for batch in BATCHES},
        "slide": lambda: measure_slide(device, folder),
        "eager-64": lambda: measure_batch(device, BATCH, graph=False),
    }
    failed = []
    for name, measure in measurements.items():
        try:
            document = measure()
        except (ImportError, RuntimeError, ValueError, MclstError) as error:  # others may well run
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            failed.append(name)
            continue
        (folder / f"{name}.json").write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
        print(f"{name}: {document['tiles_per_second']:.0f} tiles/s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
