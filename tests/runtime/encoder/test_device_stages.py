"""The stages on a CUDA device, with TensorRT's and ONNX Runtime's runners, on a fake asynchronous driver.

They test which calls are made, in which order streams may run them, and that all memory is freed. They do not
test that a GPU behaves as the driver's documentation says.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_cuda import FakeDriver, FakeTensorRT, encoded
from numpy.typing import NDArray
from PIL import Image
from synthetic_slides import tissue

from mclst.benchmarks.contenders.base import Encoder
from mclst.benchmarks.encoder import measure as latency
from mclst.benchmarks.schemas.latency import QueryResult
from mclst.runtime import open_slide
from mclst.runtime.bundle.manifest import FileRecord
from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.cuda.onnxruntime_cuda import OnnxEncoder, OnnxRunner
from mclst.runtime.encoder.cuda.session import DeviceSession
from mclst.runtime.encoder.ring import Ring
from mclst.runtime.encoder.tensorrt.engine_cache import Engine
from mclst.runtime.encoder.tensorrt.library import Library
from mclst.runtime.encoder.tensorrt.manifest import EngineKey, EngineManifest
from mclst.runtime.encoder.tensorrt.session import open_tensorrt
from mclst.runtime.errors import ResourceError
from mclst.runtime.progress import Clock
from mclst.runtime.tiling.tiles import Tiles, TileShape

OpenDevice = Callable[..., tuple[CudaDevice, FakeDriver]]


@pytest.fixture
def fake_device(monkeypatch: pytest.MonkeyPatch) -> OpenDevice:
    """Opens the device of a fake driver."""

    def open_device(seed: int = 0, **fails: str) -> tuple[CudaDevice, FakeDriver]:
        driver = FakeDriver(seed, fails)
        package = ModuleType("cuda.bindings")
        package.driver = driver  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cuda.bindings", package)
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
        return CudaDevice(), driver

    return open_device


def an_engine(flavor: str = "tensorrt") -> Engine:
    key = EngineKey(
        onnx_sha256="0" * 64,
        precision="fp32",
        flavor=flavor,  # type: ignore[arg-type]
        version="10.3.0",
        max_batch=8,
        platform="linux-x86_64",
    )
    manifest = EngineManifest(
        format="mclst-engine/1",
        key=key,
        output="embedding",
        tile_px=8,
        layers={},
        plan=FileRecord(bytes=4, sha256="1" * 64),
        seconds=0,
    )
    # The fake encoder takes tiles of 4 px, smaller than a manifest allows.
    return Engine(Path("engines/0"), manifest.model_copy(update={"tile_px": 4}), b"plan")


def a_session(
    device: CudaDevice, driver: FakeDriver, flavor: str = "tensorrt", fails: str = ""
) -> tuple[DeviceSession, FakeTensorRT]:
    trt = FakeTensorRT(driver, fails)
    library = Library(flavor, trt, trt.__version__)  # type: ignore[arg-type]
    return open_tensorrt(library, device, an_engine(flavor)), trt


@dataclass(frozen=True)
class OneSlide:
    path: Path
    xy: NDArray[np.float64]
    expected: NDArray[np.float32]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> OneSlide:
    path = tmp_path_factory.mktemp("slide") / "slide.png"
    Image.fromarray(tissue(100, 100)).save(path)
    xy = np.random.default_rng(3).uniform(2, 90, (53, 2))
    with open_slide(path) as opened:
        tiles = Tiles(opened, xy, TileShape(4), batch_size=1, workers=1)
        return OneSlide(path, xy, encoded(np.stack([tiles.read_tile(row) for row in range(len(xy))])))


def on_host(group: Any) -> NDArray[np.float32]:
    """A copy of a group on the host; device memory of the fake driver is host memory."""
    if isinstance(group, np.ndarray):
        return group.copy()
    interface = group.__cuda_array_interface__
    assert interface["typestr"] == "<f4" and interface["strides"] is None
    size = int(np.prod(interface["shape"]))
    flat = np.ctypeslib.as_array((ctypes.c_float * size).from_address(interface["data"][0]))
    return flat.reshape(interface["shape"]).copy()


def whole_run(
    session: Any, slide: OneSlide, clock: Clock, *, on_device: bool, batch: int = 5
) -> NDArray[np.float32]:
    embeddings = np.full((len(slide.xy), 3), np.nan, np.float32)
    with open_slide(slide.path) as opened:
        tiles = Tiles(opened, slide.xy, TileShape(4), batch_size=batch, workers=2, group=3)
        stages = session.stages(batch, group_rows=3 * batch, on_device=on_device, clock=clock)
        with closing(Ring(stages).run(tiles)) as steps:
            for step in steps:
                if step.group is not None:
                    embeddings[step.group.rows] = on_host(step.group.values)
    return embeddings


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("flavor", ["tensorrt", "tensorrt-rtx"])
def test_a_run_through_tensorrt(
    fake_device: OpenDevice, slide: OneSlide, flavor: str, on_device: bool, seed: int
) -> None:
    device, driver = fake_device(seed)
    session, trt = a_session(device, driver, flavor)
    clock = Clock()
    embeddings = whole_run(session, slide, clock, on_device=on_device)
    np.testing.assert_array_equal(embeddings, slide.expected)
    assert trt.deserialized == [b"plan"]
    # One warm-up and one capture, then the graph; TensorRT-RTX captures itself.
    batches = -(-len(slide.xy) // 5)
    expected = (2, batches) if flavor == "tensorrt" else (1 + batches, 0)
    assert (trt.executed, driver.launched) == expected
    assert driver.most_waiting > 10 and set(clock) == {
        "upload",
        "encode",
        "gather" if on_device else "download",
    }
    assert not driver.memory and not driver.streams and not driver.graphs and driver.depth == 0
    assert not driver.events


def test_the_device_says_what_it_is(
    fake_device: OpenDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mclst.runtime.encoder.cuda.device.DRIVER_VERSION", tmp_path / "none")
    device, _ = fake_device()
    assert (device.gpu.name, device.gpu.compute_capability, device.gpu.target) == (
        "Made-up RTX",
        "8.6",
        "sm_86",
    )
    assert device.gpu.driver == "CUDA 13000"
    (tmp_path / "none").write_text("580.159.03\n")
    assert fake_device()[0].gpu.driver == "580.159.03"


@pytest.mark.parametrize(("cores", "spinning"), [(2, False), (8, False), (9, True)])
def test_waiting_for_the_device_spins_only_where_cores_are_spare(
    fake_device: OpenDevice, monkeypatch: pytest.MonkeyPatch, cores: int, spinning: bool
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))
    device, driver = fake_device()
    device.destroy_event(device.create_event())
    assert driver.spinning == spinning


@pytest.mark.parametrize("n", [1, 3, 8])
def test_tiles_at_hand(fake_device: OpenDevice, n: int) -> None:
    device, driver = fake_device()
    session, _ = a_session(device, driver)
    tiles = np.random.default_rng(n).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    for _ in range(3):
        np.testing.assert_array_equal(session.encode(tiles), encoded(tiles))
    assert driver.launched == 3
    assert session.encode(tiles[:0]).shape == (0, 3)


def test_the_device_times_each_query_by_its_events(fake_device: OpenDevice) -> None:
    device, driver = fake_device()
    session, _ = a_session(device, driver)
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
    assert session.device_seconds() == {}
    before: dict[str, float] = {}
    for n in (3, 3, 8, 3):
        session.encode(tiles[:n])
        now = session.device_seconds()
        # The fake clock advances 1 ms per operation: one copy, or copy, graph and copy.
        took = {name: round(1e3 * (now[name] - before.get(name, 0.0))) for name in now}
        assert took.keys() == {"upload", "encode", "download"} and min(took.values()) >= 1
        assert took["encode"] > took["upload"]
        before = now


def test_a_benchmark_tells_copies_and_work_on_the_device_apart(fake_device: OpenDevice) -> None:
    device, driver = fake_device()
    session, _ = a_session(device, driver)
    tiles = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
    ours = Encoder(
        "mclst tensorrt fp32", True, "fp32", session.encode, gpu=True, device_seconds=session.device_seconds
    )
    host = Encoder("host", False, "fp32", encoded)
    for batch in (1, 8):
        document = latency.measure(
            [ours, host], tiles, batch=batch, rounds=2, block_s=0.02, warm_s=(0.001, 0.01)
        )
        mine, theirs = document["results"]
        assert theirs["device_s"] is None and mine["device_s"].keys() == {"copy up", "encode", "copy down"}
        for stage, summary in mine["device_s"].items():
            seconds = mine["samples"][f"{stage}_s"]
            assert summary["n"] == len(seconds) == mine["latency_s"]["n"] and min(seconds) >= 0.001
            assert summary["mean"] == pytest.approx(np.mean(seconds))
        QueryResult.model_validate({**mine, "roofline_s": None, "of_roofline": None})


def test_more_tiles_than_the_engine_takes_are_refused(fake_device: OpenDevice) -> None:
    device, driver = fake_device()
    session, _ = a_session(device, driver)
    with pytest.raises(
        ResourceError, match="does not take 9 tiles of 4 px at once; give a smaller --batch-size"
    ):
        session.encode(np.zeros((9, 4, 4, 3), np.uint8))


@pytest.mark.parametrize(("batch", "profile"), [(1, 1), (2, 1), (3, 0), (8, 0)])
def test_a_small_batch_runs_in_the_profile_made_for_it(
    fake_device: OpenDevice, batch: int, profile: int
) -> None:
    device, driver = fake_device()
    trt = FakeTensorRT(driver)
    trt.profiles = (8, 2)
    session = open_tensorrt(Library("tensorrt", trt, trt.__version__), device, an_engine())
    tiles = np.random.default_rng(batch).integers(0, 256, (batch, 4, 4, 3), np.uint8)
    np.testing.assert_array_equal(session.encode(tiles), encoded(tiles))
    assert trt.shapes == [(profile, batch)]


def test_an_engine_that_is_refused_is_one_sentence(fake_device: OpenDevice) -> None:
    device, driver = fake_device()
    with pytest.raises(ResourceError, match="refuses engines/0, whose bytes are right"):
        a_session(device, driver, fails="deserialize")


@pytest.mark.parametrize(
    "call", ["cuMemcpyHtoDAsync", "cuGraphLaunch", "cuEventQuery", "cuMemcpyDtoHAsync", "cuStreamWaitEvent"]
)
def test_a_driver_that_fails_ends_the_run(fake_device: OpenDevice, slide: OneSlide, call: str) -> None:
    device, driver = fake_device()
    session, _ = a_session(device, driver)
    stages = session.stages(5, group_rows=15, on_device=False, clock=Clock())
    driver.fails[call] = "CUDA_ERROR_ILLEGAL_ADDRESS"
    with open_slide(slide.path) as opened:
        tiles = Tiles(opened, slide.xy, TileShape(4), batch_size=5, workers=2, group=3)
        with (
            pytest.raises(ResourceError, match="ILLEGAL_ADDRESS") as caught,
            closing(Ring(stages).run(tiles)) as steps,
        ):
            list(steps)
    assert "\n" not in str(caught.value) and driver.depth == 0


def test_a_device_without_room_says_so_and_gives_back_what_it_took(fake_device: OpenDevice) -> None:
    device, driver = fake_device()
    session, _ = a_session(device, driver)
    driver.room = 2000
    with pytest.raises(ResourceError, match=r"has no room for \d+ MiB more"):
        session.stages(8, group_rows=24, on_device=False, clock=Clock())
    assert not driver.memory and not driver.streams


def test_without_a_device_it_is_one_sentence(fake_device: OpenDevice) -> None:
    with pytest.raises(
        ResourceError, match=r"no CUDA device was found \(its driver answers CUDA_ERROR_NO_DEVICE\)"
    ):
        fake_device(cuInit="CUDA_ERROR_NO_DEVICE")


# --- ONNX Runtime ---------------------------------------------------------------------------------


class FakeOnnx:
    """ONNX Runtime on its CUDA provider, enqueuing on a stream of the fake driver."""

    def __init__(self, driver: FakeDriver, stream: int) -> None:
        self.driver, self.stream = driver, stream

    def get_inputs(self) -> list[Any]:
        return [type("Input", (), {"name": "tiles", "type": "tensor(uint8)", "shape": ["N", 4, 4, 3]})]

    def get_outputs(self) -> list[Any]:
        return [type("Output", (), {"name": "embedding", "shape": ["N", 3]})]

    def io_binding(self) -> Any:
        return FakeBinding()

    def run_with_iobinding(self, binding: Any, options: onnxruntime.RunOptions) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        (n, *_), source, to = (
            binding.bound["tiles"][0],
            binding.bound["tiles"][1],
            binding.bound["embedding"][1],
        )
        assert binding.bound["embedding"][0] == (n, 3)

        def run() -> None:
            tiles = np.ctypeslib.as_array((ctypes.c_uint8 * (n * 48)).from_address(source))
            embeddings = encoded(tiles.reshape(n, 4, 4, 3).copy())
            ctypes.memmove(to, embeddings.ctypes.data, embeddings.nbytes)

        self.driver.put(self.stream, run)


class FakeBinding:
    def __init__(self) -> None:
        self.bound: dict[str, tuple[tuple[int, ...], int]] = {}

    def bind_input(self, *arguments: Any) -> None:
        self.bind(onnxruntime.IOBinding.bind_input, np.uint8, arguments)

    def bind_output(self, *arguments: Any) -> None:
        self.bind(onnxruntime.IOBinding.bind_output, np.float32, arguments)

    def bind(self, real: Any, dtype: Any, arguments: tuple[Any, ...]) -> None:
        bound = inspect.signature(real).bind(self, *arguments).arguments
        assert (bound["device_type"], bound["device_id"], bound["element_type"]) == ("cuda", 0, dtype)
        self.bound[bound["name"]] = (tuple(bound["shape"]), bound["buffer_ptr"])


@pytest.mark.parametrize("on_device", [False, True])
def test_a_run_through_onnx_runtime(
    fake_device: OpenDevice, slide: OneSlide, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, driver = fake_device(4)
    options: list[dict[str, str]] = []

    def open_graph(path: Path, provider: str, *, cuda_options: dict[str, str]) -> FakeOnnx:
        options.append(cuda_options)
        return FakeOnnx(driver, int(cuda_options["user_compute_stream"]))

    monkeypatch.setattr("mclst.runtime.encoder.cuda.onnxruntime_cuda.open_graph", open_graph)
    encoder = OnnxEncoder(device, Path("encoder.onnx"))
    session = DeviceSession(
        device,
        lambda batch: OnnxRunner(encoder, batch),
        provider="cuda",
        engine="",
        tile=encoder.tile,
        width=encoder.width,
    )
    embeddings = whole_run(session, slide, Clock(), on_device=on_device)
    np.testing.assert_array_equal(embeddings, slide.expected)
    for n in (1, 3, 3, 8):  # other batch sizes go through the same session
        tiles = np.random.default_rng(n).integers(0, 256, (n, 4, 4, 3), np.uint8)
        np.testing.assert_array_equal(session.encode(tiles), encoded(tiles))
    assert len(options) == 1 and options[0]["use_tf32"] == "0"
    assert options[0]["cudnn_conv_algo_search"] == "HEURISTIC"
    del session
    assert not driver.memory and list(driver.streams) == [encoder.stream]
    encoder.close()
    assert not driver.streams


def test_a_graph_that_does_not_open_leaves_no_stream(
    fake_device: OpenDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, driver = fake_device()

    def open_graph(*_: Any, **__: Any) -> Any:
        raise ResourceError("ONNX Runtime could not start CUDAExecutionProvider")

    monkeypatch.setattr("mclst.runtime.encoder.cuda.onnxruntime_cuda.open_graph", open_graph)
    with pytest.raises(ResourceError, match="could not start"):
        OnnxEncoder(device, Path("encoder.onnx"))
    gc.collect()
    assert not driver.streams
