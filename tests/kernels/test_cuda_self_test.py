""" "auto" and the device: chosen after a self-test that is remembered, left loudly where it fails."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from host_driver import HostDriver, compiler
from retrieval_cases import assert_same, clustered

from mclst.kernels.cuda import devices, self_test
from mclst.kernels.definition.contract import ProviderError
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.retriever import Retriever, fastest_on_cpu

pytestmark = pytest.mark.skipif(compiler() is None, reason="g++ is not installed, and the emulation needs it")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MCLST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def device(cache: Path, monkeypatch: pytest.MonkeyPatch) -> HostDriver:
    """The emulation, as the device of this machine."""
    driver = HostDriver()
    monkeypatch.setattr("mclst.kernels.cuda.devices.first_device", lambda: driver)
    return driver


class Wrong(HostDriver):
    """A device whose results of `name` are off by a factor."""

    def __init__(self, kernel: str, factor: float) -> None:
        super().__init__()
        self.kernel, self.factor = kernel, factor

    def launch(self, kernel: str, grid: Any, block: int, shared: int, argument: Any, stream: int = 7) -> None:
        super().launch(kernel, grid, block, shared, argument, stream)
        if kernel == self.kernel:
            values = np.empty((argument.n, argument.genes), np.float32)
            self.download(values, argument.out)
            self.upload(argument.out, values * np.float32(self.factor))


def test_auto_takes_the_device_after_a_test_that_it_takes_once(device: HostDriver, cache: Path) -> None:
    queries, bank = clustered(5, 90, 12)
    spec = RetrievalSpec(k=11)
    first = Retriever(bank, spec)
    assert first.provider == "cuda"
    assert_same(first.aggregate(queries, neighbors=True), queries, bank, spec)
    tested = {"place", "product_all", "product_within", "city_block_all", "city_block_within", "set_limit"}
    assert tested | {"choose", "choose_exactly", "weigh", "gather", "multiply_dense"} <= set(device.launched)
    (record,) = cache.iterdir()
    assert json.loads(record.read_text()) == {"device": "emulation", "why": ""}
    device.launched.clear()
    assert Retriever(bank, spec).provider == "cuda"
    assert "multiply_dense" not in device.launched
    half = SimpleNamespace(embedding=bank.embedding, expression=bank.expression.astype(np.float16))
    assert Retriever(half, spec).provider == "cuda"


@pytest.mark.parametrize(("kernel", "factor"), [("gather", 1.0001), ("multiply_dense", np.nan)])
def test_a_device_that_computes_otherwise_is_left_loudly_and_for_good(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kernel: str,
    factor: float,
) -> None:
    monkeypatch.setattr("mclst.kernels.cuda.devices.first_device", lambda: Wrong(kernel, factor))
    queries, bank = clustered(5, 90, 12)
    spec = RetrievalSpec(k=11)
    for _ in range(2):
        caplog.clear()
        retriever = Retriever(bank, spec)
        assert retriever.provider == fastest_on_cpu()
        assert_same(retriever.aggregate(queries, neighbors=True), queries, bank, spec)
        assert "in place of 'cuda': emulation fails the self-test of retrieval" in caplog.text
        # The second time the verdict on record counts.
        monkeypatch.setattr(self_test, "run", lambda driver: pytest.fail("tested twice"))


def test_a_bank_that_the_device_does_not_take_goes_to_the_cpu_loudly(
    device: HostDriver, caplog: pytest.LogCaptureFixture
) -> None:
    _, bank = clustered(1, 90, 12)
    Retriever(bank, RetrievalSpec(k=3))
    device.room = 1 << 20
    assert Retriever(bank, RetrievalSpec(k=3)).provider == fastest_on_cpu()
    assert "GiB free" in caplog.text and "in place of 'cuda'" in caplog.text


@pytest.mark.parametrize("count", [0, 1])
def test_a_device_that_no_binding_opens_is_left_loudly(
    count: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU that torch or CuPy alone can use; and none, of which there is nothing to say."""
    monkeypatch.setattr(devices, "count_devices", lambda: count)
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    _, bank = clustered(1, 90, 12)
    assert Retriever(bank, RetrievalSpec(k=3)).provider == fastest_on_cpu()
    assert ("in place of 'cuda'" in caplog.text and "install mclst[gpu]" in caplog.text) == bool(count)


class Library:
    """NVIDIA's driver as a library, with two devices."""

    def __init__(self, status: int) -> None:
        self.status = status

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 2
        return self.status


@pytest.mark.parametrize(("library", "count"), [(Library(0), 2), (Library(100), 0), (object(), 0)])
def test_devices_are_counted_without_a_binding(
    library: object, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_library", lambda: library)
    assert devices.count_devices() == count


def test_what_says_nothing_of_the_kernels_is_not_remembered(
    device: HostDriver, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full() -> None:
        raise ProviderError("the CUDA device has no room")

    _, bank = clustered(1, 90, 12)
    monkeypatch.setattr(device, "load", full)
    assert Retriever(bank, RetrievalSpec(k=3)).provider == fastest_on_cpu()
    assert "no room" in caplog.text and not cache.exists()
    monkeypatch.undo()


def test_another_device_or_driver_is_tested_again(device: HostDriver, cache: Path) -> None:
    keys = {self_test._key(device)}
    for name, value in (("device", "other"), ("version", 13010), ("architecture", 90)):
        changed = HostDriver()
        setattr(changed, name, value)
        keys.add(self_test._key(changed))
    assert len(keys) == 4


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b"null"])
def test_a_damaged_record_is_no_verdict(cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    tested: list[HostDriver] = []

    def run(driver: HostDriver) -> str:
        tested.append(driver)
        return ""

    monkeypatch.setattr(self_test, "run", run)
    driver = HostDriver()
    self_test.check_device(driver)
    (record,) = cache.iterdir()
    record.write_bytes(content)
    for _ in range(2):
        self_test.check_device(driver)
    assert len(tested) == 2
