"""A fake CUDA driver and a fake TensorRT on the host, with asynchronous streams, events and graphs.

Device memory is host memory. Streams work in order, but only during queries and waits; a random stream goes
next, or the one that is `ahead`. Every call must exist in the real cuda-bindings with the same number of
arguments, and be made in the device's context.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import driver as real
from numpy.typing import NDArray

from mclst.kernels.cuda.job import Job, Placing

# Weights of the fake encoder, for tiles of 4 px; integers, so that sums are exact.
WEIGHTS = np.random.default_rng(7).integers(-5, 6, (4 * 4 * 3, 3)).astype(np.float32)


def encoded(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (tiles.reshape(len(tiles), -1).astype(np.float32) @ WEIGHTS).astype(np.float32)


class Status(int):
    name = "CUDA_SUCCESS"


def status(name: str, number: int) -> Status:
    made = Status(number)
    made.name = name
    return made


OK, NOT_READY = status("CUDA_SUCCESS", 0), status("CUDA_ERROR_NOT_READY", 600)
NO_MEMORY = status("CUDA_ERROR_OUT_OF_MEMORY", 2)


@dataclass(eq=False)
class Record:
    """One recording of an event; `time` is -1 until it is reached."""

    time: float = -1.0


@dataclass(eq=False)
class Event:
    record: Record | None = None


@dataclass
class Stream:
    work: deque[Callable[[], bool]] = field(default_factory=deque)
    captured: list[Callable[[], bool]] | None = None
    blocking: bool = False


class FakeDriver(ModuleType):
    """`cuda.bindings.driver`.

    kernels: runs those that are launched. names: of streams. ahead: streams that go first if they can.
    trace: (stream's name, "copy" or the kernel) of what was done. called: all calls. pageable: asynchronous
    copies from or to memory that is not page-locked. drop_wait: number of the stream wait to ignore.
    fail_after: number of calls after which one fails.
    """

    def __init__(self, seed: int = 0, fails: dict[str, str] | None = None) -> None:
        super().__init__("cuda.bindings.driver")
        self.rng, self.fails, self.time = np.random.default_rng(seed), fails or {}, 0.0
        self.depth = 0
        self.room = 1 << 40
        self.memory: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.events: set[Event] = set()
        self.graphs = 0
        self.launched = 0
        self.spinning = False
        self.most_waiting = 0
        self.kernels: Any = None
        self.names: dict[int, str] = {}
        self.ahead: tuple[str, ...] = ()
        self.trace: list[tuple[str, str]] = []
        self.called: list[str] = []
        self.pinned: dict[int, int] = {}
        self.pageable: list[int] = []
        self.waits = self.created = 0
        self.drop_wait = self.fail_after = -1
        self.CUresult = SimpleNamespace(CUDA_ERROR_OUT_OF_MEMORY=NO_MEMORY, CUDA_ERROR_NOT_READY=NOT_READY)
        self.CUdevice_attribute = real.CUdevice_attribute
        self.CUstreamCaptureMode = real.CUstreamCaptureMode

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: self.answer(name, *arguments)

    def answer(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        doc = getattr(real, name).__doc__.split("\n")[0]
        inside = doc[doc.index("(") + 1 : doc.rindex(")")]
        assert len(arguments) == (inside.count(",") + 1 if inside else 0), f"{name} takes ({inside})"
        if name.startswith(("cuMem", "cuStream", "cuEvent", "cuGraph")):
            assert self.depth == 1, f"{name} without the context"
        self.called.append(name)
        if name in self.fails:
            return (status(self.fails[name], 700),)
        if self.fail_after >= 0 and not name.startswith("cuCtx"):
            self.fail_after -= 1
            if self.fail_after < 0:
                return (status("CUDA_ERROR_LAUNCH_FAILED", 719),)
        result = getattr(self, f"fake_{name}")(*arguments)
        return result if isinstance(result, tuple) else (OK,) if result is None else (OK, result)

    # --- the device ---

    def fake_cuInit(self, flags: int) -> None: ...

    def fake_cuDeviceGetCount(self) -> int:
        return 1

    def fake_cuDeviceGet(self, number: int) -> int:
        return number

    def fake_cuDevicePrimaryCtxRetain(self, device: int) -> int:
        return 1

    def fake_cuDeviceGetAttribute(self, attribute: Any, device: int) -> int:
        names = {"COMPUTE_CAPABILITY_MAJOR": 8, "COMPUTE_CAPABILITY_MINOR": 6, "MULTIPROCESSOR_COUNT": 3}
        return names[attribute.name.removeprefix("CU_DEVICE_ATTRIBUTE_")]

    def fake_cuDeviceGetName(self, length: int, device: int) -> bytes:
        return b"Made-up RTX".ljust(length, b"\0")

    def fake_cuDriverGetVersion(self) -> int:
        return 13000

    def fake_cuCtxPushCurrent(self, context: int) -> None:
        self.depth += 1

    def fake_cuCtxPopCurrent(self) -> int:
        self.depth -= 1
        return 1

    # --- memory ---

    def allocate(self, nbytes: int) -> Any:
        if nbytes > self.room:
            return (NO_MEMORY,)
        # Aligned as a device's memory is.
        memory = ctypes.create_string_buffer(b"\x99" * (nbytes + 256), nbytes + 256)
        address = -(-ctypes.addressof(memory) // 256) * 256
        self.memory[address] = memory
        self.room -= nbytes
        return address

    def free(self, address: int) -> None:
        self.room += len(self.memory.pop(address)) - 256

    fake_cuMemAlloc, fake_cuMemFree = allocate, free

    def fake_cuMemFreeHost(self, address: int) -> None:
        del self.pinned[address]
        self.free(address)

    def fake_cuMemHostAlloc(self, nbytes: int, flags: int) -> Any:
        address = self.allocate(nbytes)
        if not isinstance(address, tuple):
            self.pinned[address] = address + nbytes
        return address

    def fake_cuMemGetInfo(self) -> tuple[Any, ...]:
        return OK, self.room, 1 << 40

    def fake_cuMemcpyDtoDAsync(self, to: int, source: int, nbytes: int, stream: int) -> None:
        self.put(stream, lambda: ctypes.memmove(to, source, nbytes), name="copy")

    def fake_cuMemcpyHtoDAsync(self, to: int, source: int, nbytes: int, stream: int) -> None:
        self.check_pinned(source, nbytes)
        self.fake_cuMemcpyDtoDAsync(to, source, nbytes, stream)

    def fake_cuMemcpyDtoHAsync(self, to: int, source: int, nbytes: int, stream: int) -> None:
        self.check_pinned(to, nbytes)
        self.fake_cuMemcpyDtoDAsync(to, source, nbytes, stream)

    def check_pinned(self, address: int, nbytes: int) -> None:
        if not any(start <= address and address + nbytes <= end for start, end in self.pinned.items()):
            self.pageable.append(address)

    def move_now(self, to: int, source: int, nbytes: int) -> None:
        """On the default stream, after the work of blocking streams."""
        self.fake_cuStreamSynchronize(0)
        ctypes.memmove(to, source, nbytes)

    fake_cuMemcpyHtoD = fake_cuMemcpyDtoH = move_now

    def fake_cuMemsetD8Async(self, to: int, value: int, nbytes: int, stream: int) -> None:
        self.put(stream, lambda: ctypes.memset(to, value, nbytes))

    # --- streams, events, graphs ---

    def put(
        self,
        stream: int,
        run: Callable[[], Any],
        ready: Callable[[], bool] = lambda: True,
        name: str = "",
    ) -> None:
        def work() -> bool:
            if not ready():
                return False
            self.time += 1
            if name:
                self.trace.append((self.names.get(stream, ""), name))
            run()
            return True

        target = self.streams[stream]
        if target.captured is not None:
            target.captured.append(work)
        else:
            target.work.append(work)
            self.most_waiting = max(self.most_waiting, sum(len(s.work) for s in self.streams.values()))

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            busy = [stream for stream in self.streams.values() if stream.work]
            if not busy:
                return
            if self.step_ahead():
                continue
            stream = busy[self.rng.integers(len(busy))]
            if stream.work[0]():
                stream.work.popleft()

    def step_ahead(self) -> bool:
        for name in self.ahead:
            for number, stream in self.streams.items():
                if self.names.get(number) == name and stream.work and stream.work[0]():
                    stream.work.popleft()
                    return True
        return False

    def fake_cuStreamCreate(self, flags: int) -> int:
        assert flags in (0, 1)
        self.created += 1
        self.streams[1000 + self.created] = Stream(blocking=flags == 0)
        return 1000 + self.created

    def fake_cuStreamDestroy(self, stream: int) -> None:
        assert not self.streams.pop(stream).work
        assert not self.graphs, "a graph outlives its stream"

    def fake_cuStreamSynchronize(self, stream: int) -> None:
        streams = [self.streams[stream]] if stream else [s for s in self.streams.values() if s.blocking]
        self.until(lambda: not any(s.work for s in streams))

    def fake_cuCtxSynchronize(self) -> None:
        self.until(lambda: not any(stream.work for stream in self.streams.values()))

    def until(self, reached: Callable[[], bool]) -> None:
        for _ in range(100_000):
            if reached():
                return
            self.advance(1)
        raise AssertionError("the device hangs")

    def fake_cuEventCreate(self, flags: int) -> Event:
        assert flags in (0, 1), "an event without timing"
        self.spinning = flags == 0
        event = Event()
        self.events.add(event)
        return event

    def fake_cuEventDestroy(self, event: Event) -> None:
        self.events.remove(event)

    def fake_cuEventRecord(self, event: Event, stream: int) -> None:
        record = event.record = Record()

        def reach() -> None:
            record.time = self.time

        self.put(stream, reach)

    def fake_cuStreamWaitEvent(self, stream: int, event: Event, flags: int) -> None:
        record = event.record
        assert record is not None
        self.waits += 1
        if self.waits - 1 != self.drop_wait:
            self.put(stream, lambda: None, lambda: record.time >= 0)

    def fake_cuEventQuery(self, event: Event) -> Any:
        self.advance(int(self.rng.integers(3)))
        assert event.record is not None
        return None if event.record.time >= 0 else (NOT_READY,)

    def fake_cuEventSynchronize(self, event: Event) -> None:
        record = event.record
        assert record is not None
        self.until(lambda: record.time >= 0)

    def fake_cuEventElapsedTime(self, start: Event, end: Event) -> float:
        assert start.record is not None and end.record is not None
        assert 0 <= start.record.time <= end.record.time
        return end.record.time - start.record.time

    # --- kernels ---

    def fake_cuModuleLoadData(self, code: bytes) -> int:
        return 1

    def fake_cuModuleGetFunction(self, module: int, name: bytes) -> str:
        return name.decode()

    def fake_cuLaunchKernel(self, kernel: str, *rest: Any) -> None:
        grid, block, (shared, stream, parameters, extra) = rest[:3], rest[3:6], rest[6:]
        assert (grid[2], block[1:], extra) == (1, (1, 1), 0)
        address = ctypes.c_void_p.from_address(parameters).value
        assert address is not None
        # A driver copies the arguments when it is called.
        kind = Placing if kernel == "place" else Job
        argument = kind.from_buffer_copy(ctypes.string_at(address, ctypes.sizeof(kind)))
        self.put(
            stream,
            lambda: self.kernels.launch(kernel, grid[:2], block[0], shared, argument),
            name=kernel,
        )

    def fake_cuStreamBeginCapture(self, stream: int, mode: Any) -> None:
        self.streams[stream].captured = []

    def fake_cuStreamEndCapture(self, stream: int) -> Any:
        captured, self.streams[stream].captured = self.streams[stream].captured, None
        return (captured,) if captured is None else (OK, captured)

    def fake_cuGraphInstantiate(self, graph: list[Any], flags: int) -> list[Any]:
        self.graphs += 1
        return list(graph)

    def fake_cuGraphDestroy(self, graph: list[Any]) -> None:
        graph.clear()

    def fake_cuGraphExecDestroy(self, graph: list[Any]) -> None:
        self.graphs -= 1
        graph.clear()

    def fake_cuGraphLaunch(self, graph: list[Any], stream: int) -> None:
        self.launched += 1
        assert graph, "a destroyed graph"
        for work in list(graph):
            self.streams[stream].work.append(work)


class FakeTensorRT(ModuleType):
    """`tensorrt` or `tensorrt_rtx_bindings`, with an engine of the fake encoder.

    profiles: their largest batches. shapes: (profile, batch) of each context that was prepared.
    """

    __version__ = "10.3.0"

    def __init__(self, driver: FakeDriver, fails: str = "") -> None:
        super().__init__("tensorrt")
        self.driver, self.fails = driver, fails
        self.deserialized: list[bytes] = []
        self.profiles: tuple[int, ...] = (8,)
        self.shapes: list[tuple[int, int]] = []
        self.executed = 0
        self.ComputeCapability = SimpleNamespace(__members__={"SM89": 0})
        self.DataType = SimpleNamespace(UINT8="uint8", FLOAT="float")
        self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
        self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
        module = self

        class Logger:
            ERROR = 2

            def __init__(self, severity: int) -> None: ...

        class Runtime:
            def __init__(self, log: Logger) -> None:
                assert driver.depth == 1

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                module.deserialized.append(plan)
                return None if module.fails == "deserialize" else FakeEngine(module)

        self.Logger, self.Runtime = Logger, Runtime


class FakeEngine:
    num_io_tensors = 2

    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.num_optimization_profiles = len(trt.profiles)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert name == "tiles"
        most = self.trt.profiles[index]
        return [(n, 4, 4, 3) for n in (1, most, most)]

    def get_tensor_name(self, index: int) -> str:
        return ("tiles", "embedding")[index]

    def get_tensor_dtype(self, name: str) -> str:
        return {"tiles": "uint8", "embedding": "float"}[name]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"tiles": (-1, 4, 4, 3), "embedding": (-1, 3)}[name]

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(
            cuda_graph_strategy="none", dynamic_shapes_kernel_specialization_strategy="lazy"
        )

    def create_execution_context(self, config: Any = None) -> Any:
        if config is not None:
            assert config.cuda_graph_strategy == "whole"
            assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
        return FakeContext(self.trt)


class FakeContext:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt, self.batch, self.address, self.profile = trt, 0, dict[str, int](), 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream in self.trt.driver.streams
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "tiles" and shape[1:] == (4, 4, 3)
        self.batch = shape[0]
        self.trt.shapes.append((self.profile, self.batch))
        return self.batch <= self.trt.profiles[self.profile]

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"embedding": (self.batch, 3)}[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.address[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.trt.executed += 1
        if self.trt.fails == "execute":
            return False
        source, to, n = self.address["tiles"], self.address["embedding"], self.batch

        def run() -> None:
            tiles = np.ctypeslib.as_array((ctypes.c_uint8 * (n * 48)).from_address(source))
            embeddings = encoded(tiles.reshape(n, 4, 4, 3).copy())
            ctypes.memmove(to, embeddings.ctypes.data, embeddings.nbytes)

        self.trt.driver.put(stream, run)
        return True
