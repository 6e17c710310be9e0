"""The encoder on a device; `make gpu-check` runs this file.

With torch: the ring around a torch network, its overlap, and retrieval on the device. With onnx, pydantic and
onnxruntime-gpu, TensorRT or TensorRT-RTX: their embeddings against the CPU's. Needs numpy, Pillow and
cuda-bindings; measurements go to engines-<device>.json, in benchmarks/results or where `make gpu-check` says.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
import zlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytestmark = pytest.mark.gpu
pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
pytest.importorskip("PIL", reason="Pillow is not installed")

from mclst.benchmarks.gpu_check.steps import RESULTS
from mclst.runtime.batches import Buffers, TileBatch
from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.cuda.session import DeviceSession
from mclst.runtime.encoder.ring import Ring
from mclst.runtime.errors import ResourceError
from mclst.runtime.progress import Clock

try:
    DEVICE = CudaDevice()
except ResourceError as why_not:
    pytest.skip(str(why_not), allow_module_level=True)

ROOT = Path(__file__).resolve().parents[3]
SIDE, WIDTH, BATCH, GROUP = 224, 256, 32, 8
WORKERS = 8
MEASURED: dict[str, Any] = {
    "format": "mclst-gpu-engines/1",
    "device": DEVICE.gpu.name,
    "compute_capability": DEVICE.gpu.compute_capability,
    "driver": DEVICE.gpu.driver,
    "tile_px": SIDE,
    "batch": BATCH,
    "runs": {},
}


@pytest.fixture(scope="module", autouse=True)
def results() -> Iterator[None]:
    """Write the measurements, also if a test fails."""
    yield
    name = re.sub(r"[^a-z0-9]+", "-", DEVICE.gpu.name.lower()).strip("-")
    folder = Path(os.environ.get(RESULTS) or ROOT / "benchmarks" / "results")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"engines-{name}.json"
    path.write_text(json.dumps(MEASURED, indent=2) + "\n")


class SyntheticTiles:
    """Tiles that threads unpack `again` times, to take as long as decoding."""

    def __init__(self, batches: int, again: int = 1) -> None:
        rng = np.random.default_rng(0)
        self.kinds = rng.integers(0, 256, (16, SIDE // 8, SIDE // 8, 3)).astype(np.uint8)
        self.pictures = [np.kron(kind, np.ones((8, 8, 1), np.uint8)) for kind in self.kinds]
        self.packed = [zlib.compress(picture.tobytes(), 1) for picture in self.pictures]
        # The last batch is not full.
        self.n = batches * BATCH - 5
        self.again, self.seconds, self.lock = again, 0.0, threading.Lock()

    def stream(self, buffers: Buffers) -> Generator[TileBatch]:
        rows = [np.arange(at, min(self.n, at + BATCH)) for at in range(0, self.n, BATCH)]
        ahead: deque[tuple[int, list[Any]]] = deque()
        with ThreadPoolExecutor(WORKERS) as pool:
            for number, some in enumerate(rows):
                while (following := number + len(ahead)) < len(rows):
                    slot = buffers.take(wait=not ahead)
                    if slot is None:
                        break
                    into = buffers.buffer(slot)
                    tasks = [
                        pool.submit(self.read, row, into[i]) for i, row in enumerate(rows[following].tolist())
                    ]
                    ahead.append((slot, tasks))
                slot, tasks = ahead.popleft()
                for task in tasks:
                    task.result()
                ends = (number + 1) % GROUP == 0 or number + 1 == len(rows)
                yield TileBatch(some, buffers.buffer(slot)[: len(some)], (), ends, slot)

    def read(self, row: int, into: NDArray[np.uint8]) -> None:
        start = time.perf_counter()
        for _ in range(self.again):
            pixels = zlib.decompress(self.packed[row % 16])
        into[:] = np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE, 3)
        with self.lock:
            self.seconds += time.perf_counter() - start


def whole_run(session: Any, tiles: SyntheticTiles, clock: Clock) -> tuple[NDArray[np.float32], float]:
    """Embeddings of all tiles, and the seconds of the run without set-up."""
    result = np.full((tiles.n, WIDTH), np.nan, np.float32)
    stages = session.stages(BATCH, group_rows=BATCH * GROUP, on_device=False, clock=clock)
    start = time.perf_counter()
    with closing(Ring(stages).run(tiles)) as steps:
        for step in steps:
            if step.group is not None:
                result[step.group.rows] = step.group.values
    return result, time.perf_counter() - start


def compare(session: Any, expected: NDArray[np.float32]) -> None:
    """A measured run: correct, with the same bits in every batch, and with overlapping stages."""
    first = SyntheticTiles(2 * GROUP)
    whole_run(session, first, Clock())
    clock = Clock()
    whole_run(session, first, clock)
    # As much reading as encoding, so that both can be seen to overlap.
    again = max(1, round(clock["encode"] * WORKERS / max(first.seconds / 2, 1e-9)))
    tiles, clock = SyntheticTiles(12 * GROUP, again), Clock()
    result, wall = whole_run(session, tiles, clock)
    expected = expected[np.arange(tiles.n) % 16]
    cosine = (result * expected).sum(1) / np.linalg.norm(result, axis=1) / np.linalg.norm(expected, axis=1)
    stages = {"read": tiles.seconds / WORKERS, **clock}
    MEASURED["runs"][session.provider] = {
        "engine": session.engine,
        "tiles_per_second": tiles.n / wall,
        "wall_s": wall,
        "stages_s": stages,
        "overlap": sum(stages.values()) / wall,
        "smallest_cosine": float(cosine.min()),
        "largest_difference": float(np.abs(result - expected).max()),
    }
    assert cosine.min() > 0.99999
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    # A tile at the same position has the same bits in every batch, full or not.
    for i in range(BATCH):
        assert (result[i::BATCH] == result[i]).all()
    assert sum(stages.values()) > wall, stages


# --- torch in the ring ----------------------------------------------------------------------------


def torch_session() -> tuple[DeviceSession, Any]:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    layers: list[Any] = [torch.nn.Conv2d(3, 64, 7, 4, 3), torch.nn.ReLU()]
    for _ in range(6):
        layers += [torch.nn.Conv2d(64, 64, 3, 1, 1), torch.nn.ReLU()]
    network = torch.nn.Sequential(
        *layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, WIDTH)
    ).cuda()

    def embed(tiles: Any) -> Any:
        return network(tiles.permute(0, 3, 1, 2).float() / 255)

    class Lying:
        """Memory on the device, for torch."""

        def __init__(self, address: int, shape: tuple[int, ...], kind: str) -> None:
            self.__cuda_array_interface__ = {
                "shape": shape,
                "typestr": kind,
                "data": (address, False),
                "version": 3,
                "strides": None,
            }

    class TorchRunner:
        stream = None

        def __init__(self, batch: int) -> None:
            self.batch = batch

        def prepare(self, stream: int, inputs: Sequence[int], outputs: Sequence[int]) -> None:
            self.ours = torch.cuda.ExternalStream(stream)
            shape = (self.batch, SIDE, SIDE, 3)
            self.inputs = [torch.as_tensor(Lying(a, shape, "|u1"), device="cuda") for a in inputs]
            self.outputs = [
                torch.as_tensor(Lying(a, (self.batch, WIDTH), "<f4"), device="cuda") for a in outputs
            ]

        def enqueue(self, slot: int) -> None:
            with torch.cuda.stream(self.ours), torch.inference_mode():
                self.outputs[slot].copy_(embed(self.inputs[slot]))

        def close(self) -> None: ...

    session = DeviceSession(
        DEVICE,
        TorchRunner,
        provider="torch",
        engine=f"torch {torch.__version__}",
        tile=(SIDE, SIDE, 3),
        width=WIDTH,
    )
    pictures = torch.from_numpy(np.stack(SyntheticTiles(1).pictures)).cuda()
    with torch.inference_mode():
        expected = embed(pictures).cpu().numpy()
    return session, expected


def test_the_ring_over_a_network_of_torch() -> None:
    session, expected = torch_session()
    np.testing.assert_allclose(
        session.encode(np.stack(SyntheticTiles(1).pictures)),
        expected,
        rtol=0,
        atol=1e-4 * np.abs(expected).max(),
    )
    compare(session, expected)


def test_a_graph_replays_what_was_captured() -> None:
    """Copies alone, so that nothing but the driver is needed."""
    stream = DEVICE.create_stream()
    first, second = DEVICE.allocate(4096), DEVICE.allocate(4096)
    up, down = DEVICE.allocate_pinned(4096), DEVICE.allocate_pinned(4096)
    graph = DEVICE.capture(stream, lambda: DEVICE.copy_on_device(second, first, 4096, stream))
    for value in (3, 200):
        up[:] = value
        DEVICE.copy_to_device(first, up, stream)
        DEVICE.replay(graph, stream)
        DEVICE.copy_to_host(down, second, stream)
        event = DEVICE.create_event()
        DEVICE.record(event, stream)
        DEVICE.synchronize(event)
        assert DEVICE.done(event) and (down == value).all()
        DEVICE.destroy_event(event)
    DEVICE.destroy_graph(graph)
    DEVICE.destroy_stream(stream)
    for address in (first, second):
        DEVICE.free(address)
    DEVICE.free_pinned(up)
    DEVICE.free_pinned(down)


def test_what_is_gathered_is_retrieved_where_it_lies() -> None:
    from mclst.kernels.definition import reference
    from mclst.kernels.definition.spec import RetrievalSpec
    from mclst.kernels.retriever import Retriever

    session, expected = torch_session()
    rng = np.random.default_rng(0)

    class Bank:
        embedding = (expected[rng.integers(16, size=2000)] + rng.normal(0, 0.1, (2000, WIDTH))).astype(
            np.float32
        )
        expression = rng.gamma(1.0, size=(2000, 60)).astype(np.float32)

    spec = RetrievalSpec(k=50, rank="cosine", distance="l1")
    retriever = Retriever(Bank(), spec, "cuda")
    tiles = SyntheticTiles(3 * GROUP)
    stages = session.stages(BATCH, group_rows=BATCH * GROUP, on_device=True, clock=Clock())
    with closing(Ring(stages).run(tiles)) as steps:
        for step in steps:
            if step.group is None:
                continue
            assert not isinstance(step.group.values, np.ndarray)
            result = retriever.aggregate(step.group.values)
            embedding = session.encode(
                np.stack([tiles.pictures[row % 16] for row in step.group.rows[:BATCH]])
            )
            by_definition = reference.aggregate(embedding, Bank.embedding, Bank.expression, spec)
            np.testing.assert_allclose(result.expression[:BATCH], by_definition.expression, rtol=0, atol=1e-5)


# --- the providers --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small convolutional encoder."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx import TensorProto, helper, numpy_helper

    rng, nodes, weights = np.random.default_rng(0), [], []

    def put(kind: str, name: str, *inputs: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))

    def add_weight(name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:]))
        weights.append(
            numpy_helper.from_array(rng.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32), name)
        )
        return name

    put("Cast", "float", "tiles", to=TensorProto.FLOAT)
    put("Transpose", "nchw", "float", perm=[0, 3, 1, 2])
    weights.append(numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"))
    put("Mul", "x0", "nchw", "scale")
    widths, strides = (3, 32, 64, 64, 128, 128, 256), (4, 2, 1, 2, 1, 2)
    for i, stride in enumerate(strides):
        weight = add_weight(f"w{i}", widths[i + 1], widths[i], 3, 3)
        put("Conv", f"c{i}", f"x{i}", weight, strides=[stride, stride], pads=[1, 1, 1, 1])
        put("Relu", f"x{i + 1}", f"c{i}")
    put("GlobalAveragePool", "pooled", "x6")
    put("Flatten", "flat", "pooled")
    put("Gemm", "embedding", "flat", add_weight("w", WIDTH, 256), transB=1)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "encoder",
            [helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", WIDTH])],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    folder = tmp_path_factory.mktemp("bundle")
    onnx.save(model, folder / "encoder.onnx")
    return folder


@pytest.mark.parametrize("provider", ["cuda", "tensorrt-rtx", "tensorrt"])
def test_a_provider_gives_what_the_cpu_gives(provider: str, bundle: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("pydantic", reason="pydantic is not installed")
    from mclst.runtime.providers.opening import EncoderRequest, open_encoder, open_session

    messages: list[str] = []
    started = time.perf_counter()
    try:
        session, _ = open_encoder(
            provider, EncoderRequest(bundle, bundle / "encoder.onnx", "fp32", BATCH, notify=messages.append)
        )
    except ResourceError as error:
        MEASURED["runs"][provider] = {"not_run": str(error)}
        pytest.skip(str(error))
    opened = time.perf_counter() - started
    expected = open_session(bundle / "encoder.onnx").encode(np.stack(SyntheticTiles(1).pictures))
    compare(session, expected)
    MEASURED["runs"][provider]["opened_s"] = opened
    if provider != "cuda":
        # The second time, nothing is built.
        assert len(messages) == 1
        again, _ = open_encoder(
            provider, EncoderRequest(bundle, bundle / "encoder.onnx", "fp32", BATCH, build=False)
        )
        assert again.engine == session.engine
