"""The host side of the cuda provider: plans, device arrays, both bindings on a fake device, the compiler."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import machine_code
import numpy as np
import pytest
from host_driver import HostDriver, compiler
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from retrieval_cases import Bank, assert_same, clustered

from mclst.kernels.cuda import cubin
from mclst.kernels.cuda.cuda_bindings import CudaBindings
from mclst.kernels.cuda.device_array import UNKNOWN_STREAM, device_array, on_device
from mclst.kernels.cuda.devices import open_driver
from mclst.kernels.cuda.driver import Driver
from mclst.kernels.cuda.plan import MAX_ROWS, bank_bytes, bytes_per_query, make_plan
from mclst.kernels.cuda.provider import CudaProvider
from mclst.kernels.cuda.pycuda_driver import PyCuda
from mclst.kernels.definition.contract import BadQuery, ProviderError
from mclst.kernels.definition.spec import RANKS, RetrievalSpec
from mclst.kernels.retriever import PROVIDERS, Retriever
from mclst.kernels.shards import Shard, aggregate

emulated = pytest.mark.skipif(compiler() is None, reason="g++ is not installed, and the emulation needs it")

# --- plans ----------------------------------------------------------------------------------------


@given(
    rows=st.integers(1, 3_000_000),
    share=st.floats(0, 1),
    genes=st.integers(1, 20_000),
    columns=st.integers(1, 100).map(lambda c: 16 * c),
)
def test_a_plan_keeps_to_its_budget(rows: int, share: float, genes: int, columns: int) -> None:
    k = max(1, round(share * rows))
    budget = 2 << 30
    plan = make_plan(rows, columns, k, genes, multiprocessors=132, workspace_bytes=budget)
    each = bytes_per_query(rows, columns, k, genes, plan.capacity, plan.sample)
    assert plan.queries >= 1 and plan.slots >= 1
    assert plan.queries * each + 8 * rows * plan.slots <= budget
    assert k <= plan.capacity <= rows and plan.sample_rank <= plan.sample < rows


@pytest.mark.parametrize(("rows", "k"), [(11_372, 200), (8_209, 600), (24_787, 2400), (1_000_000, 200)])
def test_the_sample_seldom_misleads(rows: int, k: int) -> None:
    """For 999 of 1000 random samples, the limit keeps at least k rows and no more than fit."""
    plan = make_plan(rows, 256, k, 785, multiprocessors=132)
    rng = np.random.default_rng(0)
    cut = np.array(
        [np.sort(rng.choice(rows, plan.sample, replace=False))[plan.sample_rank - 1] for _ in range(1000)]
    )
    assert plan.sample and ((cut + 1 < k) | (cut + 1 > plan.capacity)).mean() <= 0.001
    assert plan.capacity < rows / 4


@pytest.mark.parametrize("workspace", [80_000, 1 << 20, 512 << 20])
def test_a_bank_beyond_the_workspace_is_refused_with_the_most_rows(workspace: int) -> None:
    def planned(rows: int, workspace_bytes: int = workspace) -> Any:
        return make_plan(rows, 256, 20, 785, multiprocessors=1, workspace_bytes=workspace_bytes)

    with pytest.raises(ProviderError, match=r"holds a query against .*; split the bank") as caught:
        planned(200_000_000)
    most = int(re.findall(r"against ([\d,]+)", str(caught.value))[0].replace(",", ""))
    assert planned(most).queries >= 1
    with pytest.raises(ProviderError, match=f"against {most:,}"):
        planned(most + 1)
    if workspace == 512 << 20:
        assert 60_000_000 < most < 1 << 26  # the limit that the docs name


def test_rows_and_words_are_counted_in_32_bits() -> None:
    huge = {"multiprocessors": 132, "workspace_bytes": 1 << 50}
    assert make_plan(MAX_ROWS, 256, 20, 785, **huge).queries * (MAX_ROWS // 32) < 1 << 31
    with pytest.raises(ProviderError, match=f"the bank has {MAX_ROWS + 1:,} rows"):
        make_plan(MAX_ROWS + 1, 256, 20, 785, **huge)


@emulated
def test_a_bank_beyond_the_device_is_refused_before_it_is_copied(binding: Any) -> None:
    driver, fake = binding()
    _, bank = clustered(1, 300, 12)
    fake.host.room = 1 << 20
    with pytest.raises(
        ProviderError, match=r"bank of 300 rows and its workspace need 0.0 GiB of the CUDA device, which has"
    ):
        CudaProvider(
            bank.embedding, bank.expression, RetrievalSpec(k=5), driver=driver, workspace_bytes=1 << 20
        )
    assert not fake.host.allocated


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("half", "dense_from"), [(False, 2.0), (True, 2.0), (False, 0.0)])
@emulated
def test_the_memory_of_a_bank_is_what_is_asked_for(rank: Any, half: bool, dense_from: float) -> None:
    _, bank = clustered(1, 3200, 24, genes=64)
    driver = HostDriver()
    cuda = CudaProvider(
        bank.embedding,
        bank.expression,
        RetrievalSpec(k=5, rank=rank),
        driver=driver,
        half_expression=half,
        dense_from=dense_from,
        workspace_bytes=1 << 20,
        sample=0,
    )
    taken = sum(driver.sizes[address] for address in cuda._bank._memory._address.values())
    stated = bank_bytes(3200, 24, 32, 64, points=rank != "l1", dense=dense_from == 0, half=half)
    assert stated - 8 * 3200 <= taken <= stated + 20_000  # 8 bytes a row are for cosines alone


@emulated
def test_shards_take_a_bank_that_the_device_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank = clustered(4, 900, 12)
    spec = RetrievalSpec(k=30, rank="cosine")

    def on_host(embedding: Any, expression: Any, spec: RetrievalSpec) -> CudaProvider:
        return CudaProvider(embedding, expression, spec, driver=HostDriver(), workspace_bytes=22_000)

    monkeypatch.setitem(PROVIDERS, "cuda", on_host)
    with pytest.raises(ProviderError, match=r"the bank has 900 rows, and a workspace of 0 MiB holds"):
        Retriever(bank, spec, "cuda")
    parts = [slice(0, 300), slice(300, 600), slice(600, 900)]
    shards = [
        Shard(Bank(bank.embedding[part], bank.expression[part]), part.start, spec, "cuda") for part in parts
    ]
    assert_same(aggregate(queries, shards, spec, neighbors=True), queries, bank, spec)


# --- arrays on a device ---------------------------------------------------------------------------


class OnDevice:
    """A numpy array in the memory of the emulated device."""

    def __init__(self, array: NDArray[Any], stream: int | None = None) -> None:
        self.array = array
        self.__cuda_array_interface__ = dict(array.__array_interface__) | {"version": 3, "stream": stream}


class ByDlpack:
    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int) -> Any:
        assert stream == 7  # of the kernels
        return self.array.__dlpack__()


@pytest.mark.parametrize("wrap", [OnDevice, ByDlpack])
def test_a_device_array_is_taken_where_it_lies(wrap: Any) -> None:
    whole = np.zeros((6, 4), dtype=np.float32)
    for part in (whole, whole[2:4], whole[:0], whole[:1, :]):
        view = device_array("it", wrap(part), 7)
        assert view.shape == part.shape
        assert view.pointer == part.ctypes.data or not part.size
    for wrong in (whole.astype(np.float64), whole.astype(np.int32), whole[:, :3], whole.T, whole[::2]):
        with pytest.raises(ValueError, match="it on the device must be float32 in C order"):
            device_array("it", wrap(wrong), 7)
    assert on_device(wrap(whole)) and not on_device(whole) and not on_device([1.0])


class ByBoth(ByDlpack):
    """As torch's tensors: version 2 of the interface says nothing of streams."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return dict(self.array.__array_interface__) | {"version": 2}


@pytest.mark.parametrize(
    ("interface", "stream"),
    [
        ({"version": 2}, UNKNOWN_STREAM),
        ({"version": 3}, UNKNOWN_STREAM),
        ({"version": 3, "stream": None}, None),
        ({"version": 3, "stream": 77}, 77),
    ],
)
def test_the_stream_to_wait_for(interface: dict[str, Any], stream: int | None) -> None:
    whole = np.zeros((6, 4), dtype=np.float32)
    array = SimpleNamespace(__cuda_array_interface__=dict(whole.__array_interface__) | interface)
    assert device_array("it", array, 7).stream == stream


def test_dlpack_comes_before_an_interface_without_streams() -> None:
    whole = np.zeros((6, 4), dtype=np.float32)
    view = device_array("it", ByBoth(whole), 7)  # ByDlpack requires our stream
    assert view.stream is None and view.pointer == whole.ctypes.data
    tensor = SimpleNamespace(__dlpack__=refuse_to_share)
    with pytest.raises(ValueError, match=r"it on the device cannot be shared \(it requires gradients\)"):
        device_array("it", tensor, 7)


def refuse_to_share(*, stream: int) -> Any:
    raise BufferError("it requires gradients")


@emulated
@pytest.mark.parametrize("wrap", [OnDevice, ByDlpack])
def test_queries_may_be_on_the_device(wrap: Any) -> None:
    queries, bank = clustered(9, 150, 12)
    spec = RetrievalSpec(k=11, rank="l2")
    cuda = CudaProvider(bank.embedding, bank.expression, spec, driver=HostDriver(), workspace_bytes=25_000)
    assert cuda.plan.queries < 9
    expected = cuda.aggregate(queries)
    result = cuda.aggregate_from(wrap(queries))
    np.testing.assert_array_equal(result.expression, expected.expression)
    np.testing.assert_array_equal(result.nearest, expected.nearest)
    np.testing.assert_array_equal(result.effective_k, expected.effective_k)
    with pytest.raises(
        ValueError, match=r"the embeddings on the device have shape \[9, 11\]; give \[9, 12\]"
    ):
        cuda.aggregate_from(wrap(np.zeros((9, 11), np.float32)))
    with pytest.raises(ValueError, match=r"the embeddings on the device have shape \[12\]; give \[0, 12\]"):
        cuda.aggregate_from(wrap(np.zeros(12, np.float32)))


@emulated
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e30])
@pytest.mark.parametrize("rank", ["cosine", "l2", "l1"])
def test_a_value_on_the_device_that_is_no_number_is_refused_by_row(rank: Any, value: float) -> None:
    queries, bank = clustered(9, 150, 12)
    spec = RetrievalSpec(k=11, rank=rank)
    driver = HostDriver()
    cuda = CudaProvider(
        bank.embedding, bank.expression, spec, driver=driver, workspace_bytes=60_000, sample=40
    )
    queries[7, 3] = value
    with pytest.raises(
        BadQuery, match=r"row 7 of the embeddings holds NaN, infinity or a value beyond 1e\+30"
    ):
        cuda.aggregate_from(OnDevice(queries))
    queries[7, 3] = 0
    result = cuda.aggregate_from(OnDevice(queries))
    np.testing.assert_array_equal(result.expression, cuda.aggregate(queries).expression)


@emulated
def test_work_pending_on_a_stream_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank = clustered(3, 50, 4)
    driver = HostDriver()
    waited: list[int] = []
    monkeypatch.setattr(driver, "wait", waited.append)
    cuda = CudaProvider(
        bank.embedding, bank.expression, RetrievalSpec(k=5), driver=driver, workspace_bytes=1 << 20
    )
    cuda.aggregate_from(OnDevice(queries, stream=77))
    cuda.aggregate_from(OnDevice(queries, stream=1))
    torch_like = OnDevice(queries)
    torch_like.__cuda_array_interface__["version"] = 2
    cuda.aggregate_from(torch_like)
    assert waited == [77, 1, UNKNOWN_STREAM]


# --- bindings -------------------------------------------------------------------------------------


class FakeStatus(int):
    name = "CUDA_SUCCESS"


def status(name: str) -> FakeStatus:
    made = FakeStatus({"CUDA_SUCCESS": 0, "CUDA_ERROR_OUT_OF_MEMORY": 2}.get(name, 700))
    made.name = name
    return made


class FakeBindings(ModuleType):
    """cuda.bindings.driver over the emulated device."""

    def __init__(self, fails: dict[str, str]) -> None:
        super().__init__("cuda.bindings.driver")
        self.host, self.depth, self.fails = HostDriver(), 0, fails
        self.CUresult = SimpleNamespace(CUDA_ERROR_OUT_OF_MEMORY=status("CUDA_ERROR_OUT_OF_MEMORY"))
        names = ("COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR", "MULTIPROCESSOR_COUNT")
        self.CUdevice_attribute = SimpleNamespace(**{f"CU_DEVICE_ATTRIBUTE_{name}": name for name in names})

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: self.answer(name, *arguments)

    def answer(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        if name in self.fails:
            failure = status(self.fails[name])
            return (self.CUresult.CUDA_ERROR_OUT_OF_MEMORY if "MEMORY" in failure.name else failure,)
        if name.startswith(("cuMem", "cuModule", "cuLaunch", "cuStream")):
            assert self.depth == 1, f"{name} without the context"
        value = getattr(self, f"fake_{name}", lambda *_: 0)(*arguments)
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        return (status("CUDA_SUCCESS"), *values)

    def fake_cuMemGetInfo(self) -> tuple[int, int]:
        return self.host.room, 1 << 40

    def fake_cuDeviceGetCount(self) -> int:
        return 1

    def fake_cuDeviceGetName(self, length: int, device: int) -> bytes:
        return b"Made-up Orin".ljust(length, b"\0")

    def fake_cuDriverGetVersion(self) -> int:
        return 12060

    def fake_cuDeviceGetAttribute(self, attribute: str, device: int) -> int:
        return {"COMPUTE_CAPABILITY_MAJOR": 8, "COMPUTE_CAPABILITY_MINOR": 7, "MULTIPROCESSOR_COUNT": 3}[
            attribute
        ]

    def fake_cuCtxPushCurrent(self, context: int) -> None:
        self.depth += 1

    def fake_cuCtxPopCurrent(self) -> int:
        self.depth -= 1
        return 0

    def fake_cuModuleGetFunction(self, module: int, name: bytes) -> str:
        return name.decode()

    def fake_cuMemAlloc(self, nbytes: int) -> int:
        return self.host.allocate(nbytes)

    def fake_cuMemFree(self, address: int) -> None:
        self.host.free(address)

    def fake_cuMemcpyHtoD(self, to: int, source: int, nbytes: int) -> None:
        self.host._copy(to, source, nbytes)

    fake_cuMemcpyDtoH = fake_cuMemcpyHtoD

    def fake_cuMemcpyHtoDAsync(self, to: int, source: int, nbytes: int, stream: int) -> None:
        self.host._copy(to, source, nbytes)

    fake_cuMemcpyDtoHAsync = fake_cuMemcpyHtoDAsync

    def fake_cuMemHostAlloc(self, nbytes: int, flags: int) -> int:
        return self.host.allocate(nbytes)

    def fake_cuMemFreeHost(self, address: int) -> None:
        self.host.free(address)

    def fake_cuStreamCreate(self, flags: int) -> int:
        return 7 if flags == 0 else 8

    def fake_cuStreamSynchronize(self, stream: int) -> None: ...

    def fake_cuLaunchKernel(self, kernel: str, *rest: Any) -> None:
        grid, block, (shared, stream, parameters, extra) = rest[:3], rest[3:6], rest[6:]
        assert (grid[2], block[1:], extra) == (1, (1, 1), 0)
        self.host.launch(kernel, grid[:2], block[0], shared, self.structure(kernel, parameters), stream)

    def structure(self, kernel: str, parameters: int) -> ctypes.Structure:
        from mclst.kernels.cuda.job import Job, Placing

        address = ctypes.c_void_p.from_address(parameters).value
        assert address is not None
        return (Placing if kernel == "place" else Job).from_address(address)


class FakePyCuda(ModuleType):
    """pycuda.driver over the emulated device."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    def __init__(self, fails: dict[str, str]) -> None:
        super().__init__("pycuda.driver")
        self.host, self.depth, self.fails = HostDriver(), 0, fails
        self.device_attribute = SimpleNamespace(MULTIPROCESSOR_COUNT="MULTIPROCESSOR_COUNT")
        self.host_alloc_flags = SimpleNamespace(PORTABLE=1)
        self.event_flags = SimpleNamespace(BLOCKING_SYNC=1)
        self.Context = SimpleNamespace(pop=self.pop, synchronize=lambda: self.fake_cuCtxSynchronize())
        self.Device = type(
            "Device", (), {"count": staticmethod(lambda: 1), "__new__": lambda cls, i: self.device()}
        )

    def device(self) -> Any:
        context = SimpleNamespace(push=self.push)
        return SimpleNamespace(
            retain_primary_context=lambda: context,
            name=lambda: "Made-up Orin",
            compute_capability=lambda: (8, 7),
            get_attribute=lambda name: {"MULTIPROCESSOR_COUNT": 3}[name],
        )

    def init(self) -> None:
        self.maybe_fail("cuInit")

    def get_driver_version(self) -> int:
        return 12060

    def fake_cuCtxSynchronize(self) -> None:
        pass

    def push(self) -> None:
        self.depth += 1

    def pop(self) -> None:
        self.depth -= 1

    def maybe_fail(self, name: str) -> None:
        if name in self.fails:
            kind = self.MemoryError if "MEMORY" in self.fails[name] else self.Error
            raise kind(f"{name} failed: {self.fails[name]}")

    def mem_get_info(self) -> tuple[int, int]:
        assert self.depth == 1
        return self.host.room, 1 << 40

    def mem_alloc(self, nbytes: int) -> Any:
        assert self.depth == 1
        self.maybe_fail("cuMemAlloc")
        fake = self

        class Allocation(int):
            def free(self) -> None:
                fake.host.free(int(self))

        return Allocation(self.host.allocate(nbytes))

    def memcpy_htod(self, to: int, array: NDArray[Any]) -> None:
        assert self.depth == 1
        self.host.upload(to, array)

    def memcpy_dtoh(self, array: NDArray[Any], source: int) -> None:
        assert self.depth == 1
        self.host.download(array, source)

    def memcpy_htod_async(self, to: int, array: NDArray[Any], stream: FakePyCudaStream) -> None:
        self.memcpy_htod(to, array)

    def memcpy_dtoh_async(self, array: NDArray[Any], source: int, stream: FakePyCudaStream) -> None:
        self.memcpy_dtoh(array, source)

    def pagelocked_empty(self, shape: int, dtype: Any, *, mem_flags: int) -> NDArray[Any]:
        assert self.depth == 1 and mem_flags == 1
        return np.asarray(FakePagelocked(self.host, shape))

    def Stream(self, flags: int) -> FakePyCudaStream:
        return FakePyCudaStream(self, flags)

    def Event(self, flags: int) -> FakePyCudaEvent:
        return FakePyCudaEvent(self)

    def module_from_buffer(self, code: bytes) -> Any:
        assert self.depth == 1
        self.maybe_fail("cuModuleLoadData")
        return SimpleNamespace(get_function=lambda name: FakeFunction(self, name))


class FakePagelocked:
    def __init__(self, host: HostDriver, nbytes: int) -> None:
        self.host, self.address = host, host.allocate(nbytes)
        self.__array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (self.address, False),
            "version": 3,
        }

    def free(self) -> None:
        self.host.free(self.address)


class FakePyCudaStream:
    def __init__(self, fake: FakePyCuda, flags: int) -> None:
        assert fake.depth == 1
        self.fake, self.handle = fake, 7 if flags == 0 else 8

    def wait_for_event(self, event: FakePyCudaEvent) -> None:
        assert self.fake.depth == 1


class FakePyCudaEvent:
    def __init__(self, fake: FakePyCuda) -> None:
        assert fake.depth == 1
        self.fake = fake

    def record(self, stream: FakePyCudaStream) -> None:
        assert self.fake.depth == 1

    def synchronize(self) -> None:
        assert self.fake.depth == 1

    def time_till(self, end: FakePyCudaEvent) -> float:
        return 2.0


class FakeFunction:
    def __init__(self, fake: FakePyCuda, name: str) -> None:
        self.fake, self.name, self.format = fake, name, ""

    def prepare(self, formats: list[str]) -> FakeFunction:
        (self.format,) = formats
        return self

    def prepared_async_call(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        stream: FakePyCudaStream,
        argument: bytes,
        shared_size: int,
    ) -> None:
        from mclst.kernels.cuda.job import Job, Placing

        assert self.fake.depth == 1 and self.format == f"{len(argument)}s" and grid[2] == 1
        self.fake.maybe_fail("cuLaunchKernel")
        structure = (Placing if self.name == "place" else Job).from_buffer_copy(argument)
        self.fake.host.launch(self.name, (grid[0], grid[1]), block[0], shared_size, structure, stream.handle)


@pytest.fixture(params=["cuda-bindings", "PyCUDA"])
def binding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Open a device by one of the bindings, over a fake driver; keywords name the calls that fail."""

    def opened(**fails: str) -> tuple[Driver, Any]:
        monkeypatch.setattr("mclst.kernels.cuda.driver.cubin", lambda architecture, cached=True: b"code")
        if request.param == "PyCUDA":
            pycuda = FakePyCuda(fails)
            package = ModuleType("pycuda")
            package.driver = pycuda  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, "pycuda", package)
            monkeypatch.setitem(sys.modules, "pycuda.driver", pycuda)
            return PyCuda(0), pycuda
        bindings = FakeBindings(fails)
        package = ModuleType("cuda.bindings")
        package.driver = bindings  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cuda.bindings", package)
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", bindings)
        return CudaBindings(0), bindings

    return opened


@emulated
def test_a_whole_retrieval_through_either_binding(binding: Any) -> None:
    driver, fake = binding()
    assert (driver.architecture, driver.multiprocessors) == (87, 3)
    assert (driver.device, driver.version) == ("Made-up Orin", 12060)
    queries, bank = clustered(9, 150, 12)
    spec = RetrievalSpec(k=11, rank="l2")
    cuda = CudaProvider(
        bank.embedding, bank.expression, spec, driver=driver, workspace_bytes=1 << 20, sample=40
    )
    assert_same(cuda.aggregate(queries, neighbors=True), queries, bank, spec)
    driver.wait(5)
    event = driver.create_event()
    assert driver.elapsed(event, event) in (0.0, 0.002)
    cuda.release()
    assert not fake.host.allocated and fake.depth == 0


@emulated
@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_cubin_is_compiled_again_once(
    binding: Any, monkeypatch: pytest.MonkeyPatch, damaged: int
) -> None:
    driver, fake = binding()
    loaded: list[bool] = []

    def fake_cubin(architecture: int, *, cached: bool = True) -> bytes:
        loaded.append(cached)
        if len(loaded) <= damaged:
            fake.fails["cuModuleLoadData"] = "CUDA_ERROR_INVALID_IMAGE"
        else:
            fake.fails.clear()
        return b"code"

    monkeypatch.setattr("mclst.kernels.cuda.driver.cubin", fake_cubin)
    if damaged == 1:
        driver.load()
    else:
        with pytest.raises(ProviderError, match="CUDA_ERROR_INVALID_IMAGE"):
            driver.load()
    assert loaded == [True, False] and fake.depth == 0


@emulated
def test_work_on_any_stream_is_waited_for(binding: Any) -> None:
    driver, fake = binding()
    waited: list[str] = []
    fake.fake_cuCtxSynchronize = lambda: waited.append("all")
    fake.fake_cuStreamSynchronize = lambda stream: waited.append(f"stream {stream}")
    driver.wait(UNKNOWN_STREAM)
    driver.wait(5)
    assert waited in (["all", "stream 5"], ["all", "all"])  # PyCUDA cannot wait for one


@emulated
def test_a_pycuda_that_cannot_be_imported_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package = ModuleType("pycuda")
    package.__spec__ = ModuleSpec("pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    bindings = ModuleType("cuda.bindings")
    bindings.driver = FakeBindings({})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", bindings.driver)
    bindings.driver.__spec__ = ModuleSpec("cuda.bindings.driver", None)
    assert open_driver().name == "cuda-bindings"
    assert "PyCUDA cannot be imported" in caplog.text


@emulated
def test_what_the_driver_answers_becomes_one_sentence(binding: Any) -> None:
    with pytest.raises(
        ProviderError, match=r"finds no such CUDA device on this machine \(its driver answers .*NO_DEVICE"
    ):
        binding(cuInit="CUDA_ERROR_NO_DEVICE")
    driver, _ = binding(cuMemAlloc="CUDA_ERROR_OUT_OF_MEMORY")
    with pytest.raises(ProviderError, match=r"no room for 3 MiB more; stop other programs on it"):
        driver.allocate(3 << 20)
    driver, fake = binding(cuLaunchKernel="CUDA_ERROR_ILLEGAL_ADDRESS")
    _, bank = clustered(3, 50, 4)
    with pytest.raises(ProviderError, match=r"device answers .*CUDA_ERROR_ILLEGAL_ADDRESS") as caught:
        CudaProvider(
            bank.embedding, bank.expression, RetrievalSpec(k=5), driver=driver, workspace_bytes=1 << 20
        )
    assert "\n" not in str(caught.value) and fake.depth == 0


def test_without_a_binding_or_a_device_the_provider_says_what_to_install() -> None:
    code = """
import sys
hidden = sys.argv[1].split()
sys.modules.update({name: None for name in hidden})
import importlib.util, numpy as np
find_spec = importlib.util.find_spec
def without_hidden(name, *rest):
    return None if name.split(".")[0] in hidden else find_spec(name, *rest)
importlib.util.find_spec = without_hidden
from types import SimpleNamespace
from mclst.kernels import ProviderError, RetrievalSpec, Retriever
bank = SimpleNamespace(embedding=np.eye(4, dtype=np.float32), expression=np.eye(4, dtype=np.float32))
try:
    Retriever(bank, RetrievalSpec(k=2), "cuda")
except ProviderError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "pycuda cuda"], capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "retrieval with provider 'cuda' needs PyCUDA or cuda-bindings, and neither can be imported; "
        "install mclst[gpu]\n"
    )


def test_on_a_machine_without_a_device() -> None:
    try:
        open_driver()
    except ProviderError as error:
        assert re.search("finds no such CUDA device|needs PyCUDA or cuda-bindings", str(error))
        _, bank = clustered(0, 20, 4)
        with pytest.raises(ProviderError, match="provider 'cuda'"):
            Retriever(bank, RetrievalSpec(k=3), "cuda")
    else:
        pytest.skip("this machine has a CUDA device")


def test_more_columns_than_the_kernels_hold_are_refused() -> None:
    bank = Bank(np.zeros((2, 4097), np.float32), np.zeros((2, 1), np.float32))
    with pytest.raises(ValueError, match="has 4097 columns and provider 'cuda' takes up to 4096"):
        CudaProvider(bank.embedding, bank.expression, RetrievalSpec(k=1))


# --- the compiler ---------------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(
    cubin.find_nvcc() is None and cubin.find_nvrtc() is None,
    reason="neither nvcc nor NVRTC is installed, and compiling the kernels needs one",
)


@needs_compiler
def test_every_architecture_compiles_into_the_machine_code_on_record() -> None:
    recorded = json.loads(machine_code.TABLE.read_text())
    compiled = machine_code.compiled()
    assert compiled is not None
    version, table = compiled
    assert list(table) == [f"sm_{architecture}" for architecture in machine_code.ARCHITECTURES]
    for architecture, kernels in table.items():
        assert set(kernels) == set(next(iter(recorded.values()))[architecture])
        assert all(kernel["spills"] == kernel["stack"] == 0 for kernel in kernels.values()), architecture
    # Other compiler versions allocate other registers.
    if version in recorded and machine_code.find_disassembler():
        assert table == recorded[version]
    elif version in recorded:
        assert table == machine_code.without_counts(recorded[version])


def test_the_record_says_what_the_sources_imply() -> None:
    """Sixteen fragments of three products; Turing halves each and has no asynchronous copies."""
    (table,) = json.loads(machine_code.TABLE.read_text()).values()
    assert list(table) == [f"sm_{architecture}" for architecture in machine_code.ARCHITECTURES]
    for target, kernels in table.items():
        halves, copies = (2, False) if target == "sm_75" else (1, True)
        row = kernels["product_within"]
        assert row["HMMA"] == 48 * halves and ("LDGSTS" in row) == copies
        assert all("HMMA" not in kernels[kernel] for kernel in ("choose", "weigh", "gather"))
        assert row["ATOMG"] == 1 and row["LDG"] <= 16
        if target == "sm_75":
            continue
        # Two blocks of 256 threads share 65,536 registers, and 100 KiB of shared memory less 1 KiB for each.
        for kernel in ("product_all", "product_within", "multiply_dense"):
            row = kernels[kernel]
            assert row["registers"] <= 128 and 2 * (row["shared"] + 1024) <= 100 << 10


def give_away(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(path, 65534, 65534)


def link_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("where", ["MCLST_CACHE", "XDG_CACHE_HOME"])
@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        (True, give_away),
        (True, lambda path: path.chmod(0o660)),
        (True, lambda path: path.chmod(0o602)),
        (True, link_away),
        (True, make_pipe),
        (False, give_away),
        (False, lambda path: path.chmod(0o770)),
        (False, lambda path: path.chmod(0o1777)),
    ],
    ids=["owner", "group", "all", "a link", "a pipe", "folder's owner", "folder's group", "folder of all"],
)
def test_l6_a_cubin_that_others_may_have_written_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, file: bool, spoil: Any
) -> None:
    monkeypatch.delenv("MCLST_CACHE", raising=False)
    monkeypatch.setenv(where, str(tmp_path / "cache"))
    folder = tmp_path / "cache" / ("" if where == "MCLST_CACHE" else "mclst")
    compiled: list[int] = []

    def compile_(*_: Any) -> tuple[bytes, str]:
        compiled.append(1)
        return b"code", ""

    monkeypatch.setattr(cubin, "find_nvrtc", lambda: None)
    monkeypatch.setattr(cubin, "_nvcc", lambda: "nvcc")
    monkeypatch.setattr(cubin, "nvcc_version", lambda nvcc: "13.0")
    monkeypatch.setattr(cubin, "compile_by_nvcc", compile_)
    umask = os.umask(0o002)
    try:
        assert cubin.cubin(90) == cubin.cubin(90) == b"code" and len(compiled) == 1
        assert folder.stat().st_mode & 0o777 == 0o700
        (path,) = folder.iterdir()
        path.write_bytes(b"hostile")
        spoil(path if file else folder)
        assert cubin.cubin(90) == b"code" and len(compiled) == 2
        # The default folder may come from an earlier version under this umask: it is made private again.
        again = file or (where == "XDG_CACHE_HOME" and spoil is not give_away)
        assert cubin.cubin(90) == b"code" and len(compiled) == (2 if again else 3)
    finally:
        os.umask(umask)


@needs_compiler
def test_a_cubin_is_compiled_once(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCLST_CACHE", str(tmp_path / "cache"))
    first = cubin.cubin(90)
    assert first[:4] == b"\x7fELF"
    (cached,) = (tmp_path / "cache").iterdir()
    assert re.fullmatch(r"[0-9a-f]{32}-sm_90\.cubin", cached.name)
    cached.write_bytes(b"cached")
    assert cubin.cubin(90) == b"cached"
    monkeypatch.setattr(cubin, "sources", lambda: {"retrieve.cu": 'extern "C" __global__ void f() {}'})
    monkeypatch.setenv("MCLST_CACHE", "/proc/no/such/folder")
    if cubin.find_nvrtc() is not None:
        assert cubin.cubin(90)[:4] == b"\x7fELF"
        with pytest.raises(
            ProviderError, match=r"cannot compile the kernels for sm_1 \(.*\); install a CUDA toolkit"
        ):
            cubin.cubin(1)
